import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;

/** Threads, monitors, locks, parking and interruption. */
public class Main {
    private static final int THREADS = 8;
    private static final int ROUNDS = 20_000;
    private static int underMonitor;
    private static int underLock;

    public static void main(String[] args) throws Exception {
        counters();
        waitAndNotify();
        conditions();
        handOver();
        barrier();
        pool();
        parking();
        interruption();
        manyThreads();
    }

    private static void counters() throws Exception {
        Object monitor = new Object();
        ReentrantLock lock = new ReentrantLock();
        AtomicLong atomic = new AtomicLong();
        runAll(THREADS, i -> {
            for (int round = 0; round < ROUNDS; round++) {
                synchronized (monitor) {
                    underMonitor++;
                }
                lock.lock();
                try {
                    underLock++;
                } finally {
                    lock.unlock();
                }
                atomic.incrementAndGet();
            }
        });
        System.out.println("counters: " + underMonitor + " " + underLock + " " + atomic.get());
    }

    private static int turn;

    private static void waitAndNotify() throws Exception {
        Object monitor = new Object();
        StringBuilder order = new StringBuilder();
        runAll(3, i -> {
            for (int round = 0; round < 4; round++) {
                synchronized (monitor) {
                    while (turn % 3 != i) {
                        monitor.wait();
                    }
                    order.append((char) ('a' + i));
                    turn++;
                    monitor.notifyAll();
                }
            }
        });
        System.out.println("wait and notify: " + order);
    }

    private static boolean ready;

    private static void conditions() throws Exception {
        ReentrantLock lock = new ReentrantLock(true);
        Condition changed = lock.newCondition();
        Thread waiter = new Thread(() -> {
            lock.lock();
            try {
                while (!ready) {
                    changed.awaitUninterruptibly();
                }
            } finally {
                lock.unlock();
            }
        });
        waiter.start();
        lock.lock();
        try {
            System.out.println("condition times out: " + !changed.await(10, TimeUnit.MILLISECONDS));
            ready = true;
            changed.signalAll();
        } finally {
            lock.unlock();
        }
        waiter.join();
        System.out.println("condition signalled: " + !waiter.isAlive());
    }

    private static void handOver() throws Exception {
        SynchronousQueue<Integer> queue = new SynchronousQueue<>();
        Thread producer = new Thread(() -> {
            for (int i = 1; i <= 2_000; i++) {
                try {
                    queue.put(i);
                } catch (InterruptedException e) {
                    throw new AssertionError(e);
                }
            }
        });
        producer.start();
        long sum = 0;
        for (int i = 1; i <= 2_000; i++) {
            sum += queue.take();
        }
        producer.join();
        System.out.println("handed over: " + sum);
    }

    private static void barrier() throws Exception {
        CyclicBarrier barrier = new CyclicBarrier(4);
        AtomicLong passed = new AtomicLong();
        runAll(4, i -> {
            for (int round = 0; round < 100; round++) {
                barrier.await();
                passed.incrementAndGet();
            }
        });
        System.out.println("barrier: " + passed);
    }

    private static void pool() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> results = new ArrayList<>();
        for (int task = 0; task < 50; task++) {
            long from = task * 1000L;
            results.add(pool.submit(() -> {
                long sum = 0;
                for (long i = from; i < from + 1000; i++) {
                    sum += i;
                }
                return sum;
            }));
        }
        long total = 0;
        for (Future<Long> result : results) {
            total += result.get();
        }
        pool.shutdown();
        System.out.println("pool: " + total + " " + pool.awaitTermination(10, TimeUnit.SECONDS));
    }

    private static void parking() throws Exception {
        CountDownLatch parked = new CountDownLatch(1);
        Thread sleeper = new Thread(() -> {
            parked.countDown();
            LockSupport.park();
        });
        sleeper.start();
        parked.await();
        LockSupport.unpark(sleeper);
        sleeper.join();
        System.out.println("unparked: " + !sleeper.isAlive());
        long end = System.nanoTime() + 5_000_000;
        while (System.nanoTime() < end) {
            LockSupport.parkNanos(end - System.nanoTime());
        }
        System.out.println("parked for a time");
    }

    private static void interruption() throws Exception {
        StringBuilder seen = new StringBuilder();
        Thread sleeper = new Thread(() -> {
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException e) {
                seen.append("interrupted, flag ").append(Thread.currentThread().isInterrupted());
            }
        });
        sleeper.start();
        Thread.sleep(10);
        sleeper.interrupt();
        sleeper.join();
        System.out.println("sleep: " + seen);
    }

    private static void manyThreads() throws Exception {
        AtomicLong sum = new AtomicLong();
        runAll(100, i -> sum.addAndGet(i));
        System.out.println("a hundred threads: " + sum);
    }

    private interface Body {
        void run(int index) throws Exception;
    }

    private static void runAll(int count, Body body) throws InterruptedException {
        Thread[] threads = new Thread[count];
        for (int i = 0; i < count; i++) {
            int index = i;
            threads[i] = new Thread(() -> {
                try {
                    body.run(index);
                } catch (Exception e) {
                    throw new AssertionError(e);
                }
            });
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
    }
}
