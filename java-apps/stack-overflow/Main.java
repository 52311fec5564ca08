/** Overflows of the stack, on the main thread and on others: guard pages and their signals. */
public class Main {
    private static int depth;

    public static void main(String[] args) throws Exception {
        System.out.println("main thread: " + overflow());
        System.out.println("again: " + overflow());
        System.out.println("compiled: " + (overflow() && overflow() && overflow()));

        boolean[] caught = new boolean[3];
        for (int i = 0; i < caught.length; i++) {
            int index = i;
            long stackSize = 256L << 10 << i;
            Thread thread = new Thread(null, () -> caught[index] = overflow(), "small", stackSize);
            thread.start();
            thread.join();
        }
        System.out.println("other threads: " + caught[0] + " " + caught[1] + " " + caught[2]);

        Thread uncaught = new Thread(() -> recurse(1, 2, 3), "victim");
        uncaught.setUncaughtExceptionHandler((thread, error) ->
                System.out.println(thread.getName() + ": " + error.getClass().getName()));
        uncaught.start();
        uncaught.join();
        System.out.println("the program goes on");
    }

    private static boolean overflow() {
        depth = 0;
        try {
            recurse(0, 0, 0);
            return false;
        } catch (StackOverflowError e) {
            return depth > 500 && e.getStackTrace().length > 0;
        }
    }

    private static long recurse(long a, long b, long c) {
        depth++;
        return recurse(b, c, a) + a + 1;
    }
}
