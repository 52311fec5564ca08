import java.io.BufferedWriter;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.DirectoryNotEmptyException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** Files and directories, by java.nio.file and java.io. */
public class Main {
    public static void main(String[] args) throws Exception {
        Path root = Files.createTempDirectory(Path.of("/tmp"), "files");
        text(root);
        names(root);
        walking(root);
        attributes(root);
        randomAccess(root);
        System.out.println("store: " + (Files.getFileStore(root).getTotalSpace() > 0));
        System.out.println("null device: " + Files.size(Path.of("/dev/null")) + " " + Files.readAllBytes(Path.of("/dev/null")).length);
        try (Stream<Path> left = Files.list(root)) {
            for (Path path : left.collect(Collectors.toList())) {
                Files.delete(path);
            }
        }
        Files.delete(root);
        System.out.println("gone: " + Files.notExists(root));
    }

    private static void text(Path root) throws IOException {
        Path path = root.resolve("text");
        try (BufferedWriter writer = Files.newBufferedWriter(path)) {
            for (int i = 0; i < 20_000; i++) {
                writer.write("line " + i + " grüßt\n");
            }
        }
        List<String> lines = Files.readAllLines(path);
        System.out.println("text: " + Files.size(path) + " bytes, " + lines.size() + " lines, hash " + lines.hashCode());
        Files.delete(path);
    }

    private static void names(Path root) throws IOException {
        Path one = Files.writeString(root.resolve("one"), "first");
        Path two = root.resolve("two");
        Files.copy(one, two);
        try {
            Files.copy(one, two);
        } catch (FileAlreadyExistsException e) {
            System.out.println("copy does not replace");
        }
        Files.move(one, root.resolve("moved"), StandardCopyOption.ATOMIC_MOVE);
        System.out.println("moved: " + Files.exists(one) + " " + Files.readString(root.resolve("moved")));
        Path link = Files.createSymbolicLink(root.resolve("link"), Path.of("two"));
        System.out.println("link: " + Files.readSymbolicLink(link) + " " + Files.readString(link)
                + " " + link.toRealPath().getFileName());
        try {
            Files.readString(one);
        } catch (NoSuchFileException e) {
            System.out.println("no such file: " + e.getMessage().endsWith("/one"));
        }
        try {
            Files.delete(root);
        } catch (DirectoryNotEmptyException e) {
            System.out.println("not empty");
        }
    }

    private static void walking(Path root) throws IOException {
        Path tree = root.resolve("tree");
        for (int i = 0; i < 10; i++) {
            Path branch = Files.createDirectories(tree.resolve("branch" + i).resolve("twig"));
            Files.writeString(branch.resolve("leaf"), "x".repeat(i));
        }
        try (Stream<Path> walk = Files.walk(tree)) {
            System.out.println("walk: " + walk.count());
        }
        try (Stream<Path> list = Files.list(tree)) {
            System.out.println("list: " + list.map(p -> p.getFileName().toString()).sorted().collect(Collectors.joining(" ")));
        }
        try (Stream<Path> walk = Files.walk(tree)) {
            List<Path> paths = walk.sorted((a, b) -> b.compareTo(a)).collect(Collectors.toList());
            for (Path path : paths) {
                Files.delete(path);
            }
        }
    }

    private static void attributes(Path root) throws IOException {
        Path path = Files.createFile(root.resolve("attributes"));
        Files.setLastModifiedTime(path, FileTime.fromMillis(1_234_567_890_123L));
        System.out.println("modified: " + Files.getLastModifiedTime(path));
        Files.setPosixFilePermissions(path, PosixFilePermissions.fromString("rw-r-----"));
        System.out.println("permissions: " + PosixFilePermissions.toString(Files.getPosixFilePermissions(path)));
        System.out.println("directory: " + Files.isDirectory(root) + ", file: " + Files.isRegularFile(path));
    }

    private static void randomAccess(Path root) throws IOException {
        try (RandomAccessFile file = new RandomAccessFile(root.resolve("random").toFile(), "rw")) {
            file.seek(1_000_000);
            file.writeLong(0x0123456789abcdefL);
            file.seek(500_000);
            System.out.println("hole: " + file.readLong() + ", length " + file.length());
            file.setLength(1_000_004);
            file.seek(1_000_000);
            System.out.println("cut: " + Integer.toHexString(file.readInt()) + " " + file.read());
        }
    }
}
