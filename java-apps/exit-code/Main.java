/** System.exit runs the shutdown hooks, then ends with the code, though another thread lives. */
public class Main {
    public static void main(String[] args) throws Exception {
        Thread endless = new Thread(() -> {
            while (true) {
                Thread.onSpinWait();
            }
        });
        endless.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook runs")));
        try {
            System.out.println("before exit");
            System.exit(42);
        } finally {
            System.out.println("never printed");
        }
    }
}
