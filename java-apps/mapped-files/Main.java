import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileChannel.MapMode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Files mapped into memory, by MappedByteBuffer, on /tmp. */
public class Main {
    private static final int SIZE = 4 << 20;

    public static void main(String[] args) throws Exception {
        Path path = Files.createTempFile(Path.of("/tmp"), "mapped", ".bin");
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            MappedByteBuffer map = channel.map(MapMode.READ_WRITE, 0, SIZE);
            System.out.println("mapping extends the file: " + channel.size());
            for (int i = 0; i < SIZE / 4; i++) {
                map.putInt(i * 4, i * 31);
            }
            map.force();

            ByteBuffer read = ByteBuffer.allocate(8);
            channel.read(read, 4096);
            System.out.println("read sees what was stored: " + (read.getInt(0) == 1024 * 31));
            channel.write(ByteBuffer.wrap(new byte[] {1, 2, 3, 4}), 8192);
            System.out.println("the map sees what was written: " + (map.getInt(8192) == 0x01020304));

            MappedByteBuffer copy = channel.map(MapMode.PRIVATE, 0, SIZE);
            copy.putInt(0, 77);
            System.out.println("a private map is private: " + copy.getInt(0) + " " + map.getInt(0));

            MappedByteBuffer window = channel.map(MapMode.READ_ONLY, 5000, 1000);
            System.out.println("an unaligned window: " + window.getInt(0) + " " + map.getInt(5000));
            try {
                window.putInt(0, 1);
            } catch (java.nio.ReadOnlyBufferException e) {
                System.out.println("it is read-only");
            }
            long sum = 0;
            for (int i = 0; i < SIZE; i++) {
                sum = sum * 31 + map.get(i);
            }
            System.out.println("checksum: " + sum);
        }
        try (RandomAccessFile file = new RandomAccessFile(path.toFile(), "rw")) {
            file.setLength(10_000);
            file.seek(9_996);
            System.out.println("through another descriptor: " + file.readInt());
            System.out.println("length: " + file.length());
        }
        Files.delete(path);
    }
}
