/** An exception that nobody catches: exit code 1, after the other threads and the hooks. */
public class Main {
    public static void main(String[] args) {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook runs last")));
        Thread main = Thread.currentThread();
        Thread other = new Thread(() -> {
            try {
                main.join();
            } catch (InterruptedException e) {
                throw new AssertionError(e);
            }
            System.out.println("the other thread ends after main");
        });
        other.start();
        System.out.println("main throws");
        throw new IllegalStateException("nobody catches this");
    }
}
