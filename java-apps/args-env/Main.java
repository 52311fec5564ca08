import java.nio.charset.StandardCharsets;

/** Arguments, environment, properties, standard error: what a program is given at its start. */
public class Main {
    public static void main(String[] args) {
        System.out.println("arguments: " + args.length);
        for (String arg : args) {
            System.out.println("[" + arg + "] " + arg.getBytes(StandardCharsets.UTF_8).length);
        }
        System.out.println("GREETING=" + System.getenv("GREETING"));
        System.out.println("NOT_SET=" + System.getenv("NOT_SET"));
        System.out.println("os: " + System.getProperty("os.name") + " " + System.getProperty("os.arch"));
        System.out.println("command ends as typed: "
                + System.getProperty("sun.java.command").endsWith("args-env.jar one two words  last"));
        System.out.println("class path is the jar: " + System.getProperty("java.class.path").endsWith("args-env.jar"));
        System.out.println("processors: " + (Runtime.getRuntime().availableProcessors() >= 1));
        System.out.println("pid: " + (ProcessHandle.current().pid() > 0));
        System.out.println("main thread: " + Thread.currentThread().getName());
        System.err.println("this goes to standard error");
    }
}
