/* Threads: creation and end, thread-local storage, locks, condition variables, names, affinity. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>

static _Thread_local int local = 5;
static _Thread_local char zeroed[100];

static void *use_tls(void *argument)
{
    intptr_t mine = (intptr_t)argument;
    int fresh = local == 5 && zeroed[99] == 0;
    local = (int)mine;
    zeroed[99] = (char)mine;
    for (int i = 0; i < 50; i++)
        sched_yield();
    return (void *)(intptr_t)(fresh && local == mine && zeroed[99] == mine);
}

static void thread_local_storage(void)
{
    pthread_t threads[8];
    int good = 1;
    for (intptr_t i = 0; i < 8; i++)
        NEED(pthread_create(&threads[i], NULL, use_tls, (void *)(i + 10)) == 0);
    for (int i = 0; i < 8; i++) {
        void *result;
        pthread_join(threads[i], &result);
        good &= result != NULL;
    }
    CHECK("thread-local variables are each thread's own", good && local == 5);
}

static void *identity(void *argument)
{
    pid_t *tids = argument;
    tids[0] = (pid_t)syscall(SYS_gettid);
    tids[1] = getpid();
    return NULL;
}

static void *leave_by_exit(void *argument)
{
    pthread_exit(argument);
}

static void *by_value(void *argument)
{
    return (char *)argument + 1;
}

static void lives(void)
{
    pthread_t thread;
    pid_t tids[2];
    void *result;
    NEED(pthread_create(&thread, NULL, identity, tids) == 0);
    pthread_join(thread, NULL);
    CHECK("a thread has a thread id of its own", tids[0] != getpid() && tids[0] > 0);
    CHECK("and the process id of all", tids[1] == getpid());
    CHECK("the first thread's id is the process id", syscall(SYS_gettid) == getpid());
    NEED(pthread_create(&thread, NULL, leave_by_exit, (void *)7) == 0);
    CHECK("pthread_exit gives a result", pthread_join(thread, &result) == 0 && result == (void *)7);
    int good = 1;
    for (intptr_t i = 0; i < 200; i++) {
        NEED(pthread_create(&thread, NULL, by_value, (void *)i) == 0);
        pthread_join(thread, &result);
        good &= result == (void *)(i + 1);
    }
    CHECK("two hundred threads one after the other", good);
    pthread_t many[64];
    for (intptr_t i = 0; i < 64; i++)
        NEED(pthread_create(&many[i], NULL, by_value, (void *)i) == 0);
    good = 1;
    for (intptr_t i = 0; i < 64; i++) {
        pthread_join(many[i], &result);
        good &= result == (void *)(i + 1);
    }
    CHECK("sixty-four at once", good);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long counter;

static void *count_up(void *unused)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
    }
    return unused;
}

static int stage;

static void *follow(void *unused)
{
    pthread_mutex_lock(&mutex);
    for (int next = 1; next < 200; next += 2) {
        while (stage != next)
            pthread_cond_wait(&changed, &mutex);
        stage++;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&mutex);
    return unused;
}

static void locks(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        NEED(pthread_create(&threads[i], NULL, count_up, NULL) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL("a mutex excludes", counter, 80000);

    NEED(pthread_create(&threads[0], NULL, follow, NULL) == 0);
    pthread_mutex_lock(&mutex);
    for (int next = 0; next < 200; next += 2) {
        while (stage != next)
            pthread_cond_wait(&changed, &mutex);
        stage++;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&mutex);
    pthread_join(threads[0], NULL);
    CHECK_EQUAL("condition variables take turns", stage, 200);

    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += 20000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_nsec -= 1000000000;
        deadline.tv_sec++;
    }
    pthread_mutex_lock(&mutex);
    CHECK_EQUAL("a timed wait ends", pthread_cond_timedwait(&changed, &mutex, &deadline), ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
    sem_t semaphore;
    NEED(sem_init(&semaphore, 0, 1) == 0);
    CHECK("a semaphore counts", sem_wait(&semaphore) == 0 && sem_trywait(&semaphore) == -1 && sem_post(&semaphore) == 0);
    pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
    CHECK("readers share a lock", pthread_rwlock_rdlock(&rwlock) == 0 && pthread_rwlock_rdlock(&rwlock) == 0
        && pthread_rwlock_trywrlock(&rwlock) == EBUSY);
}

static pthread_barrier_t barrier;
static volatile int behind_barrier;

static void *meet(void *unused)
{
    for (int round = 0; round < 50; round++) {
        __atomic_add_fetch(&behind_barrier, 1, __ATOMIC_SEQ_CST);
        pthread_barrier_wait(&barrier);
        if (behind_barrier < 3 * (round + 1))
            return (void *)1;
        pthread_barrier_wait(&barrier);
    }
    return unused;
}

static void barriers(void)
{
    pthread_t threads[3];
    int good = 1;
    NEED(pthread_barrier_init(&barrier, NULL, 3) == 0);
    for (int i = 0; i < 3; i++)
        NEED(pthread_create(&threads[i], NULL, meet, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        good &= result == NULL;
    }
    CHECK("a barrier holds until all are there", good);
}

/* A thread that never calls the kernel must not keep others from running. */
static volatile int spinning = 1;

static void *spin(void *unused)
{
    while (spinning)
        ;
    return unused;
}

static void preemption(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        NEED(pthread_create(&threads[i], NULL, spin, NULL) == 0);
    int64_t before = now_ns();
    for (int i = 0; i < 20; i++)
        sleep_ms(1);
    CHECK("sleepers get a CPU beside busy threads", now_ns() - before < 5000000000LL);
    spinning = 0;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

/* Whatever nice level the tests run at: NULL unless this thread, and it alone, becomes one level nicer. */
static void *nicer(void *argument)
{
    errno = 0;
    int before = getpriority(PRIO_PROCESS, 0);
    int after = before < 19 ? before + 1 : 19;
    int good = errno == 0 && setpriority(PRIO_PROCESS, 0, after) == 0 && getpriority(PRIO_PROCESS, 0) == after;
    return good && getpriority(PRIO_PROCESS, *(id_t *)argument) == before ? argument : NULL;
}

static void attributes(void)
{
    char name[16];
    CHECK("a thread has a name", prctl(PR_SET_NAME, "a-long-thread-name") == 0 && prctl(PR_GET_NAME, name) == 0
        && strcmp(name, "a-long-thread-n") == 0);
    cpu_set_t cpus, one;
    CHECK("sched_getaffinity", sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) == get_nprocs());
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    CHECK("sched_setaffinity", sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK("runs where it was sent", sched_getcpu() == 0);
    CHECK("and tells so", sched_getaffinity(0, sizeof one, &one) == 0 && CPU_COUNT(&one) == 1);
    NEED(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
    CPU_ZERO(&one);
    CHECK_FAILS("no CPU at all", sched_setaffinity(0, sizeof one, &one), EINVAL);
    CHECK("sched_yield", sched_yield() == 0);
    id_t process = (id_t)getpid();
    pthread_t other;
    void *result = NULL;
    NEED(pthread_create(&other, NULL, nicer, &process) == 0 && pthread_join(other, &result) == 0);
    CHECK("a thread's priority is its own", result != NULL);
    CHECK("the policy is SCHED_OTHER", syscall(SYS_sched_getscheduler, 0) == SCHED_OTHER);
    struct rlimit limit;
    CHECK("the stack limit is known", getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur >= 1 << 20);
    pthread_attr_t own;
    void *stack;
    size_t size;
    char here;
    NEED(pthread_getattr_np(pthread_self(), &own) == 0);
    CHECK("a thread finds its own stack", pthread_attr_getstack(&own, &stack, &size) == 0
        && &here >= (char *)stack && &here < (char *)stack + size);
}

int main(void)
{
    thread_local_storage();
    lives();
    locks();
    barriers();
    preemption();
    attributes();
    return finish();
}
