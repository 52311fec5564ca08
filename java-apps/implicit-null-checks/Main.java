/**
 * Null checks that compiled code leaves to the page fault at address zero and near it. HotSpot's
 * handler turns the SIGSEGV into a NullPointerException: it reads the signal frame and changes its
 * instruction pointer. The loops are hot, so both compilers compile them.
 */
public class Main {
    private int value = 3;
    private Main next;
    private final long[] array = new long[4];

    public static void main(String[] args) {
        // The first of these run interpreted, the later ones compiled. A null now and then keeps
        // the compilers from dropping the path after a deoptimization.
        Main object = new Main();
        object.next = new Main();
        long sum = 0;
        int caught = 0;
        for (int round = 0; round < 400_000; round++) {
            Main maybe = round % 5_000 == 4_999 ? null : object;
            try {
                sum += read(maybe);
            } catch (NullPointerException e) {
                caught++;
            }
        }
        System.out.println("fields: " + sum + ", caught " + caught);

        sum = 0;
        caught = 0;
        for (int round = 0; round < 400_000; round++) {
            long[] maybe = round % 10_000 == 9_999 ? null : object.array;
            try {
                sum += write(maybe, round);
            } catch (NullPointerException e) {
                caught++;
            }
        }
        System.out.println("arrays: " + sum + ", caught " + caught);

        caught = 0;
        int[] lengths = new int[2];
        String[] strings = {"abc", null};
        for (int round = 0; round < 200_000; round++) {
            int which = round % 1_000 == 0 ? 1 : 0;
            try {
                lengths[which] += strings[which].length();
            } catch (NullPointerException e) {
                caught++;
            }
        }
        System.out.println("calls: " + lengths[0] + ", caught " + caught);

        try {
            System.out.println(chain(object));
        } catch (NullPointerException e) {
            System.out.println("message: " + e.getMessage());
        }

        caught = 0;
        int quotient = 0;
        for (int round = 0; round < 200_000; round++) {
            try {
                quotient += 100 / (round % 1_000);
            } catch (ArithmeticException e) {
                caught++;
            }
        }
        System.out.println("divisions: " + quotient + ", caught " + caught);
    }

    private static int read(Main object) {
        return object.value + object.next.value;
    }

    private static long write(long[] array, int round) {
        array[round & 3] += round;
        return array[round & 3] & 1;
    }

    private static int chain(Main object) {
        return object.next.next.value;
    }
}
