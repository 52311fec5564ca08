/* Copies its input to its output to the end of the input. */
#include <unistd.h>

int main(void) {
    static char bytes[777];
    for (;;) {
        ssize_t count = read(0, bytes, sizeof bytes);
        if (count <= 0)
            return count < 0;
        for (ssize_t done = 0; done < count;) {
            ssize_t now = write(1, bytes + done, count - done);
            if (now <= 0)
                return 2;
            done += now;
        }
    }
}
