import java.time.Duration;
import java.time.Instant;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/** Clocks, sleeping, timers. Only lower bounds are checked: a busy machine may be late. */
public class Main {
    public static void main(String[] args) throws Exception {
        long before = System.nanoTime();
        Thread.sleep(30);
        System.out.println("sleep is not short: " + (System.nanoTime() - before >= 30_000_000));

        boolean forward = true;
        long last = System.nanoTime();
        for (int i = 0; i < 1_000_000; i++) {
            long now = System.nanoTime();
            forward &= now >= last;
            last = now;
        }
        System.out.println("time goes forward: " + forward);
        System.out.println("the year is known: " + Instant.now().isAfter(Instant.parse("2024-01-01T00:00:00Z")));
        long difference = Math.abs(Duration.between(Instant.now(), Instant.ofEpochMilli(System.currentTimeMillis())).toMillis());
        System.out.println("both wall clocks agree: " + (difference < 1_000));

        StringBuilder order = new StringBuilder();
        CountDownLatch done = new CountDownLatch(3);
        Timer timer = new Timer(true);
        for (int delay : new int[] {400, 50, 200}) {
            timer.schedule(new TimerTask() {
                @Override
                public void run() {
                    order.append(delay).append(' ');
                    done.countDown();
                }
            }, delay);
        }
        done.await();
        System.out.println("timers in order: " + order);

        CountDownLatch ticks = new CountDownLatch(10);
        ScheduledExecutorService scheduler = Executors.newScheduledThreadPool(1);
        before = System.nanoTime();
        scheduler.scheduleAtFixedRate(ticks::countDown, 5, 5, TimeUnit.MILLISECONDS);
        System.out.println("ten ticks: " + ticks.await(30, TimeUnit.SECONDS)
                + " " + (System.nanoTime() - before >= 50_000_000));
        scheduler.shutdownNow();

        before = System.nanoTime();
        synchronized (order) {
            order.wait(20);
        }
        System.out.println("wait times out: " + (System.nanoTime() - before >= 19_000_000));
    }
}
