import java.lang.ref.Cleaner;
import java.lang.ref.SoftReference;
import java.lang.ref.WeakReference;
import java.util.ArrayDeque;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A collector under pressure: far more is allocated than the heap holds, while some of it lives on.
 * A checksum over what survives shows that nothing was lost or mixed up.
 */
public class Main {
    public static void main(String[] args) throws Exception {
        churn();
        threads();
        references();
        outOfMemory();
    }

    private static void churn() {
        ArrayDeque<byte[]> window = new ArrayDeque<>();
        long checksum = 0;
        long allocated = 0;
        int seed = 42;
        for (int i = 0; i < 200_000; i++) {
            seed = seed * 1103515245 + 12345;
            byte[] block = new byte[16 + (seed >>> 20)];
            block[0] = (byte) i;
            block[block.length - 1] = (byte) seed;
            allocated += block.length;
            window.add(block);
            if (window.size() > 2_000) {
                byte[] old = window.remove();
                checksum = checksum * 31 + old[0] * 7 + old[old.length - 1] + old.length;
            }
        }
        System.out.println("churn: " + allocated + " bytes, checksum " + checksum);
    }

    private static void threads() throws Exception {
        long[] sums = new long[4];
        Thread[] threads = new Thread[sums.length];
        for (int t = 0; t < threads.length; t++) {
            int index = t;
            threads[t] = new Thread(() -> {
                Map<Integer, String> map = new HashMap<>();
                for (int i = 0; i < 60_000; i++) {
                    map.put(i % 5_000, "value " + i + " of " + index);
                }
                for (String value : map.values()) {
                    sums[index] += value.hashCode();
                }
            });
            threads[t].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("threads: " + sums[0] + " " + sums[1] + " " + sums[2] + " " + sums[3]);
    }

    private static void references() throws Exception {
        AtomicInteger cleaned = new AtomicInteger();
        Cleaner cleaner = Cleaner.create();
        WeakReference<Object> weak = new WeakReference<>(new Object());
        SoftReference<Object> soft = new SoftReference<>(new Object());
        for (int i = 0; i < 10; i++) {
            cleaner.register(new Object(), cleaned::incrementAndGet);
        }
        for (int i = 0; i < 100 && (weak.get() != null || cleaned.get() < 10); i++) {
            System.gc();
            Thread.sleep(10);
        }
        System.out.println("weak cleared: " + (weak.get() == null) + ", soft kept: " + (soft.get() != null)
                + ", cleaned: " + cleaned);
    }

    private static void outOfMemory() {
        try {
            long[][] hoard = new long[1 << 20][];
            for (int i = 0; i < hoard.length; i++) {
                hoard[i] = new long[Integer.MAX_VALUE - 8];
            }
            System.out.println(hoard.length);
        } catch (OutOfMemoryError e) {
            System.out.println("caught " + e.getClass().getName());
        }
        System.out.println("and went on: " + new byte[1 << 20].length);
    }
}
