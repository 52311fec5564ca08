//! Rows: files, descriptors, readiness, sockets.
use super::{
    Row,
    Support::{Full, No, Partial},
    rows,
};
use crate::{
    args::{
        Addr, Bytes, DirFd, Fd, Hex, Mode, Path, TimespecIn,
        flags::{
            AccessFlags, AccessMode, AllocateFlags, AtFlags, EpollFlags, EventFlags, FlockOp, MemfdFlags, OpenFlags,
            RenameFlags, RwFlags, StatxMask,
        },
        names::{EpollOp, FadviseAdvice, FcntlOp, IoctlOp, SocketFamily, Whence},
    },
    files::{self, attributes, descriptor, epoll, io, names, open, poll, special, stat, unix},
    limits, system, unsupported,
};

const SOCKETS: &str = "there is no network yet";
const XATTR: &str = "EOPNOTSUPP, silently: no file system here has extended attributes";

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    0 read(fd: Fd, buffer: Addr, count: u64) => io::read, Full;
    1 write(fd: Fd, buffer: Bytes, count: u64) => io::write, Full;
    2 open(path: Path, flags: OpenFlags, mode: Mode) => open::open, Full;
    3 close(fd: Fd) => open::close, Full;
    4 stat(path: Path, out: Addr) => stat::stat, Full;
    5 fstat(fd: Fd, out: Addr) => stat::fstat, Full;
    6 lstat(path: Path, out: Addr) => stat::lstat, Full;
    7 poll(fds: Addr, count: u32, timeout_ms: i32) => poll::poll, Full;
    8 lseek(fd: Fd, offset: i64, whence: Whence) => io::lseek, Full;
    16 ioctl(fd: Fd, request: IoctlOp, argument: Addr) => descriptor::ioctl, Partial("terminal, FIONREAD, FIONBIO, FIOCLEX; others ENOTTY");
    17 pread64(fd: Fd, buffer: Addr, count: u64, offset: i64) => io::pread64, Full;
    18 pwrite64(fd: Fd, buffer: Bytes, count: u64, offset: i64) => io::pwrite64, Full;
    19 readv(fd: Fd, iovec: Addr, count: u64) => io::readv, Full;
    20 writev(fd: Fd, iovec: Addr, count: u64) => io::writev, Full;
    21 access(path: Path, mode: AccessMode) => stat::access, Full;
    22 pipe(out: Addr) => special::pipe, Full;
    23 select(count: i32, read: Addr, write: Addr, except: Addr, timeout: Addr) => poll::select, Full;
    32 dup(fd: Fd) => open::dup, Full;
    33 dup2(old: Fd, new: Fd) => open::dup2, Full;
    40 sendfile(out: Fd, input: Fd, offset: Addr, count: u64) => io::sendfile, Full;
    41 socket(family: SocketFamily, kind: i32, protocol: i32) => unix::socket, Partial("AF_UNIX, without bind and listen; other families: EAFNOSUPPORT");
    42 connect(fd: Fd, address: Addr, len: u32) => unix::connect, Partial("nobody listens: ECONNREFUSED or ENOENT");
    43 accept(fd: Fd) => unix::unsupported, No(SOCKETS);
    44 sendto(fd: Fd) => unix::unsupported, No(SOCKETS);
    45 recvfrom(fd: Fd) => unix::unsupported, No(SOCKETS);
    46 sendmsg(fd: Fd) => unix::unsupported, No(SOCKETS);
    47 recvmsg(fd: Fd) => unix::unsupported, No(SOCKETS);
    48 shutdown(fd: Fd) => unix::unsupported, No(SOCKETS);
    49 bind(fd: Fd) => unix::unsupported, No(SOCKETS);
    50 listen(fd: Fd) => unix::unsupported, No(SOCKETS);
    51 getsockname(fd: Fd) => unix::unsupported, No(SOCKETS);
    52 getpeername(fd: Fd) => unix::unsupported, No(SOCKETS);
    53 socketpair(family: SocketFamily, kind: i32, protocol: i32, out: Addr) => unix::socketpair, Partial("AF_UNIX streams, for read, write and poll");
    54 setsockopt(fd: Fd) => unix::unsupported, No(SOCKETS);
    55 getsockopt(fd: Fd) => unix::unsupported, No(SOCKETS);
    72 fcntl(fd: Fd, op: FcntlOp, argument: Hex) => descriptor::fcntl, Partial("record locks are granted while one program runs; no F_SETOWN, F_SETSIG, leases, seals, pipe sizes, open-file locks");
    73 flock(fd: Fd, op: FlockOp) => descriptor::flock, Full;
    74 fsync(fd: Fd) => io::fsync, Full;
    75 fdatasync(fd: Fd) => io::fsync, Full;
    76 truncate(path: Path, size: i64) => names::truncate, Full;
    77 ftruncate(fd: Fd, size: i64) => attributes::ftruncate, Full;
    79 getcwd(out: Addr, size: u64) => files::getcwd, Full;
    80 chdir(path: Path) => files::chdir, Full;
    81 fchdir(fd: Fd) => files::fchdir, Full;
    82 rename(from: Path, to: Path) => names::rename, Full;
    83 mkdir(path: Path, mode: Mode) => names::mkdir, Full;
    84 rmdir(path: Path) => names::rmdir, Full;
    85 creat(path: Path, mode: Mode) => open::creat, Full;
    86 link(from: Path, to: Path) => names::link, Full;
    87 unlink(path: Path) => names::unlink, Full;
    88 symlink(target: Path, path: Path) => names::symlink, Full;
    89 readlink(path: Path, out: Addr, size: i32) => stat::readlink, Full;
    90 chmod(path: Path, mode: Mode) => attributes::chmod, Full;
    91 fchmod(fd: Fd, mode: Mode) => attributes::fchmod, Full;
    92 chown(path: Path, uid: i32, gid: i32) => attributes::chown, Full;
    93 fchown(fd: Fd, uid: i32, gid: i32) => attributes::fchown, Full;
    94 lchown(path: Path, uid: i32, gid: i32) => attributes::lchown, Full;
    95 umask(mask: Mode) => limits::umask, Full;
    133 mknod(path: Path, mode: Mode, device: Hex) => names::mknod, Full;
    137 statfs(path: Path, out: Addr) => stat::statfs, Full;
    138 fstatfs(fd: Fd, out: Addr) => stat::fstatfs, Full;
    161 chroot(path: Path) => files::chroot, Full;
    162 sync() => io::sync, Full;
    165 mount() => system::refuse_administration, No("mounts are made at boot");
    166 umount2() => system::refuse_administration, No("mounts are made at boot");
    187 readahead(fd: Fd, offset: i64, count: u64) => io::readahead, Full;
    188 setxattr() => unsupported::eopnotsupp, Partial(XATTR);
    189 lsetxattr() => unsupported::eopnotsupp, Partial(XATTR);
    190 fsetxattr() => unsupported::eopnotsupp, Partial(XATTR);
    191 getxattr() => unsupported::eopnotsupp, Partial(XATTR);
    192 lgetxattr() => unsupported::eopnotsupp, Partial(XATTR);
    193 fgetxattr() => unsupported::eopnotsupp, Partial(XATTR);
    194 listxattr() => unsupported::eopnotsupp, Partial(XATTR);
    195 llistxattr() => unsupported::eopnotsupp, Partial(XATTR);
    196 flistxattr() => unsupported::eopnotsupp, Partial(XATTR);
    197 removexattr() => unsupported::eopnotsupp, Partial(XATTR);
    198 lremovexattr() => unsupported::eopnotsupp, Partial(XATTR);
    199 fremovexattr() => unsupported::eopnotsupp, Partial(XATTR);
    213 epoll_create(size: i32) => epoll::epoll_create, Full;
    217 getdents64(fd: Fd, out: Addr, size: u32) => stat::getdents64, Full;
    221 fadvise64(fd: Fd, offset: i64, len: i64, advice: FadviseAdvice) => io::fadvise64, Full;
    232 epoll_wait(epoll: Fd, events: Addr, max: i32, timeout_ms: i32) => epoll::epoll_wait, Partial("costs time in proportion to the watched files; EPOLLEXCLUSIVE wakes all");
    233 epoll_ctl(epoll: Fd, op: EpollOp, fd: Fd, event: Addr) => epoll::epoll_ctl, Partial("as epoll_wait");
    235 utimes(path: Path, times: Addr) => attributes::utimes, Full;
    253 inotify_init() => unsupported::enosys, No("no inotify yet");
    254 inotify_add_watch() => unsupported::enosys, No("no inotify yet");
    255 inotify_rm_watch() => unsupported::enosys, No("no inotify yet");
    257 openat(directory: DirFd, path: Path, flags: OpenFlags, mode: Mode) => open::openat, Full;
    258 mkdirat(directory: DirFd, path: Path, mode: Mode) => names::mkdirat, Full;
    259 mknodat(directory: DirFd, path: Path, mode: Mode, device: Hex) => names::mknodat, Full;
    260 fchownat(directory: DirFd, path: Path, uid: i32, gid: i32, flags: AtFlags) => attributes::fchownat, Full;
    262 newfstatat(directory: DirFd, path: Path, out: Addr, flags: AtFlags) => stat::newfstatat, Full;
    263 unlinkat(directory: DirFd, path: Path, flags: AtFlags) => names::unlinkat, Full;
    264 renameat(from_dir: DirFd, from: Path, to_dir: DirFd, to: Path) => names::renameat, Full;
    265 linkat(from_dir: DirFd, from: Path, to_dir: DirFd, to: Path, flags: AtFlags) => names::linkat, Full;
    266 symlinkat(target: Path, directory: DirFd, path: Path) => names::symlinkat, Full;
    267 readlinkat(directory: DirFd, path: Path, out: Addr, size: i32) => stat::readlinkat, Full;
    268 fchmodat(directory: DirFd, path: Path, mode: Mode) => attributes::fchmodat, Full;
    269 faccessat(directory: DirFd, path: Path, mode: AccessMode) => stat::faccessat, Full;
    270 pselect6(count: i32, read: Addr, write: Addr, except: Addr, timeout: Addr, mask: Addr) => poll::pselect6, Full;
    271 ppoll(fds: Addr, count: u32, timeout: TimespecIn, mask: Addr, set_bytes: u64) => poll::ppoll, Full;
    280 utimensat(directory: DirFd, path: Path, times: Addr, flags: AtFlags) => attributes::utimensat, Full;
    281 epoll_pwait(epoll: Fd, events: Addr, max: i32, timeout_ms: i32, mask: Addr, set_bytes: u64) => epoll::epoll_pwait, Partial("as epoll_wait");
    284 eventfd(initial: u32) => special::eventfd, Full;
    285 fallocate(fd: Fd, mode: AllocateFlags, offset: i64, len: i64) => attributes::fallocate, Partial("no COLLAPSE_RANGE, INSERT_RANGE");
    288 accept4(fd: Fd) => unix::unsupported, No(SOCKETS);
    290 eventfd2(initial: u32, flags: EventFlags) => special::eventfd2, Full;
    291 epoll_create1(flags: EpollFlags) => epoll::epoll_create1, Full;
    292 dup3(old: Fd, new: Fd, flags: OpenFlags) => open::dup3, Full;
    293 pipe2(out: Addr, flags: OpenFlags) => special::pipe2, Partial("no O_DIRECT (packets)");
    294 inotify_init1() => unsupported::enosys, No("no inotify yet");
    295 preadv(fd: Fd, iovec: Addr, count: u64, offset: i64) => io::preadv, Full;
    296 pwritev(fd: Fd, iovec: Addr, count: u64, offset: i64) => io::pwritev, Full;
    306 syncfs(fd: Fd) => io::fsync, Full;
    316 renameat2(from_dir: DirFd, from: Path, to_dir: DirFd, to: Path, flags: RenameFlags) => names::renameat2, Partial("no RENAME_WHITEOUT");
    319 memfd_create(name: Path, flags: MemfdFlags) => special::memfd_create, Partial("no seals, no huge pages");
    326 copy_file_range(input: Fd, input_at: Addr, out: Fd, out_at: Addr, count: u64, flags: u32) => io::copy_file_range, Full;
    327 preadv2(fd: Fd, iovec: Addr, count: u64, offset: i64, high: u64, flags: RwFlags) => io::preadv2, Partial("only RWF_HIPRI");
    328 pwritev2(fd: Fd, iovec: Addr, count: u64, offset: i64, high: u64, flags: RwFlags) => io::pwritev2, Partial("no RWF_NOWAIT, RWF_APPEND");
    332 statx(directory: DirFd, path: Path, flags: AtFlags, mask: StatxMask, out: Addr) => stat::statx, Full;
    436 close_range(first: u32, last: u32, flags: u32) => open::close_range, Full;
    437 openat2(directory: DirFd, path: Path, how: Addr, size: u64) => open::openat2, Partial("no RESOLVE_ flags");
    439 faccessat2(directory: DirFd, path: Path, mode: AccessMode, flags: AccessFlags) => stat::faccessat2, Full;
    441 epoll_pwait2(epoll: Fd, events: Addr, max: i32, timeout: TimespecIn, mask: Addr, set_bytes: u64) => epoll::epoll_pwait2, Partial("as epoll_wait");
};
