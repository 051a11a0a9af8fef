/* gen: both ends of every connection through a relay, in one thread and one epoll loop.
 *
 *   gen -p PORT -b BACKEND ...                       a plain relay that connects to BACKEND, where gen listens
 *   gen -t DOOR -n REGISTRAR -s SERVERS -f FILE ...  TAAS: gen registers, and FILE has lines LABEL ID SECRET
 *   -t DOOR with -p -b: a relay whose visitors ask a front door first (-d)
 *
 * traffic: -N ping-pongs and -P streams at once for -S seconds, beside -H handshakes a second
 * visits:  -c times connect, -z octets there and back, close; -N at once.  -k: do not close.  -w: as many
 *          hidden servers wait beforehand.  -r: register for each visit while they run, for -S seconds.
 *          -d: each asks the front door first.  -x: they speak TLS to the front door (pass-through)
 * doors:   -N clients of the front door for -S seconds: -m redirect, register or stay
 *
 * -l LABEL: an agent serves it.  -y: hidden servers stay on the connection that registered.
 * -g FILE: what each visitor says first.
 *
 * It prints "ready", waits for a line, does the timed part, prints one JSON object, and stays until end of
 * file: so the caller can read the relay's CPU time while nothing moves.
 *
 * A hidden server sends back what comes, or, when the last octet is a B, streams.  Ping-pong has precedence:
 * streams are an epoll set within the set, served one event at a time where both are there. */
#define _GNU_SOURCE
#include "gen.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <semaphore.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
#define SUPPLIERS 8 /* threads that register beforehand */
#define MOST 8000000 /* latencies kept */

typedef struct End End;
struct End {
    int fd, got, heard, label;
    void (*ready)(End *);
    uint64_t began;
};

int door, labels;
const char *registrar = "taas-registrar.example", *servers = "taas.example";
Credential *credentials;

/* Options; the comment at the top says which letter is which. */
static int relay_port, backend, at_once, pours, handshakes, visits, waiting, size = 64;
static int stays, keeps, asks_first, passes, refills;
static double span = 1;
static const char *file, *kind = "redirect", *agents_label = "home";

static int greeting_length;
static char data[2 * 1024 * 1024], greeting[8192];
static int everything, streams; /* epoll sets; the second one stands in the first */
static int *ports_q, stock, next_label;
static int silent; /* visitors that have not been answered yet */
static int measured, left, active;
static long done, errors, octets;
static uint64_t timed_from;
static double cpu_before;
static uint32_t *latencies;
static sem_t room; /* for one more waiting hidden server, with -r */
static int arrivals[2];

static void die(const char *what) {
    perror(what);
    exit(1);
}

uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static struct sockaddr_in local(int port, int number) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(0x7f000001 + number)};
}

int dial(int port, int blocking, int spread) {
    static unsigned turn;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK), 0);
    struct sockaddr_in from = local(0, spread ? 256 + __atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) % 16 : 0);
    struct sockaddr_in to = local(port, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (!bind(fd, (void *)&from, sizeof from) &&
        (!connect(fd, (void *)&to, sizeof to) || (!blocking && errno == EINPROGRESS)))
        return fd;
    close(fd);
    return -1;
}

/* Ends. */

static void watch(int set, int operation, End *end, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = end};
    if (epoll_ctl(set, operation, end->fd, &event)) die("epoll_ctl");
}

static End *welcome(int set, int fd, void (*ready)(End *), unsigned events) {
    End *end = calloc(1, sizeof *end);
    end->fd = fd, end->ready = ready;
    watch(set, EPOLL_CTL_ADD, end, events);
    return end;
}

static void leave(End *end) {
    close(end->fd);
    free(end);
}

static void note(End *end) {
    uint64_t now = nanoseconds();
    if (measured && done < MOST) latencies[done++] = (now - end->began) / 1000;
    end->began = now;
}

/* Hidden servers. */

static void pour(End *end) {
    if (send(end->fd, data, CHUNK, 0) < 0 && errno != EAGAIN) leave(end);
}

static void echo(End *end) {
    ssize_t count = recv(end->fd, data + CHUNK, CHUNK, 0);
    if (count > 0 && data[CHUNK + count - 1] == 'B') {
        watch(everything, EPOLL_CTL_DEL, end, 0);
        end->ready = pour;
        watch(streams, EPOLL_CTL_ADD, end, EPOLLOUT);
    } else if (count > 0) {
        if (send(end->fd, data + CHUNK, count, 0) != count) errors++;
    } else if (count == 0 || errno != EAGAIN) {
        leave(end);
    }
}

static void accept_hidden(End *end) {
    int fd, on = 1;
    for (int i = 0; i < 64 && (fd = accept4(end->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; i++) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        welcome(everything, fd, echo, EPOLLIN);
    }
}

static void *registering(void *unused) {
    for (;;) {
        sem_wait(&room);
        int which = __atomic_fetch_add(&next_label, 1, __ATOMIC_RELAXED) % labels;
        int fd;
        while ((fd = register_responder(&credentials[which], stays)) < 0) errors++, usleep(1000);
        welcome(everything, fd, echo, EPOLLIN);
        __atomic_fetch_add(&stock, 1, __ATOMIC_RELAXED);
        if (refills && write(arrivals[1], &which, sizeof which) < 0) return unused;
    }
}

/* See that COUNT hidden servers wait, spread over the labels, and ask for the labels' ports q. */
static void supply(int count, int threads) {
    pthread_t thread;
    sem_init(&room, 0, count);
    for (int i = 0; i < threads; i++) pthread_create(&thread, NULL, registering, NULL);
    uint64_t until = nanoseconds() + 60000000000ull;
    while (__atomic_load_n(&stock, __ATOMIC_RELAXED) < count) {
        if (nanoseconds() > until) fprintf(stderr, "gen: %d of %d wait, %ld errors\n", stock, count, errors), exit(1);
        usleep(1000);
    }
    ports_q = calloc(labels, sizeof *ports_q);
    for (int i = 0; i < labels && i < count && !passes; i++)
        if ((ports_q[i] = redirect_port(credentials[i].label)) < 0) fprintf(stderr, "gen: no port q\n"), exit(1);
    next_label = 0;
}

/* Visitors. */

static int visitor_socket(int label, int blocking) {
    int *q = ports_q ? &ports_q[label] : &relay_port;
    if (asks_first || (!*q && !passes)) *q = redirect_port(credentials[label].label);
    int fd = dial(passes ? door : *q, blocking, 1);
    if (fd < 0) die("connect");
    return fd;
}

static int one_label(void) {
    return next_label++ % labels;
}

/* Say what a visitor says first, and LENGTH octets of FILLER behind it; returns how much that was. */
static int speak(int fd, int filler, int length) {
    char words[sizeof greeting + 65536];
    memcpy(words, greeting, greeting_length);
    memset(words + greeting_length, filler, length);
    if (send(fd, words, greeting_length + length, 0) != greeting_length + length) errors++;
    return greeting_length + length;
}

static void hear(End *end) {
    silent -= !end->heard;
    end->heard = 1;
}

static void swallow(End *end) {
    ssize_t count = recv(end->fd, NULL, 4 * CHUNK, MSG_TRUNC);
    if (count > 0) octets += count, hear(end);
    if (count == 0 || (count < 0 && errno != EAGAIN)) errors++, leave(end);
}

static void ping(End *end) {
    ssize_t count = recv(end->fd, data + 2 * CHUNK, CHUNK, 0);
    if (count <= 0) {
        if (count < 0 && errno == EAGAIN) return;
        errors++;
        leave(end);
        return;
    }
    if ((end->got -= count) > 0) return;
    hear(end);
    note(end);
    end->got = size;
    if (send(end->fd, data, size, 0) != size) errors++;
}

static void visit(int label);

static void visit_over(End *end) {
    if (keeps)
        watch(everything, EPOLL_CTL_DEL, end, 0);
    else
        leave(end);
    active--;
    if (refills)
        sem_post(&room);
    else if (left > 0)
        visit(one_label());
}

static void visit_answered(End *end) {
    ssize_t count = recv(end->fd, data + 2 * CHUNK, CHUNK, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count > 0 && (end->got -= count) > 0) return;
    if (count <= 0)
        errors++;
    else
        note(end);
    visit_over(end);
}

static void visit_connected(End *end) {
    int failed = 0;
    socklen_t length = sizeof failed;
    getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &failed, &length);
    if (failed) {
        errors++;
        visit_over(end);
        return;
    }
    end->ready = visit_answered;
    watch(everything, EPOLL_CTL_MOD, end, EPOLLIN);
    if (passes) greeting_length = client_hello(credentials[end->label].label, greeting, sizeof greeting);
    end->got = speak(end->fd, 'x', passes ? 0 : size);
}

static void visit(int label) {
    left--;
    active++;
    uint64_t began = nanoseconds();
    End *end = welcome(everything, visitor_socket(label, 0), visit_connected, EPOLLOUT);
    end->began = began, end->label = label;
}

static void arrived(End *end) { /* a hidden server waits: visit it */
    int label;
    if (read(end->fd, &label, sizeof label) == sizeof label) visit(label);
}

static void serve_streams(End *end) {
    struct epoll_event events[64];
    int count = epoll_wait(end->fd, events, end->got, 0);
    for (int i = 0; i < count; i++) ((End *)events[i].data.ptr)->ready(events[i].data.ptr);
}

/* Serve until UNTIL, or with 0 until every visit is over. */
static void serve(uint64_t until) {
    struct epoll_event events[256];
    uint64_t patience = nanoseconds() + 60000000000ull;
    while (until ? nanoseconds() < until : left > 0 || active > 0) {
        int count = epoll_wait(everything, events, 256, 100);
        for (int i = 0; i < count; i++) ((End *)events[i].data.ptr)->ready(events[i].data.ptr);
        if (nanoseconds() > patience) fprintf(stderr, "gen: %d visits hang\n", active), exit(1);
    }
}

static uint64_t after(double seconds) {
    return nanoseconds() + (uint64_t)(seconds * 1e9);
}

/* The timed part begins when this returns. */
static void wait_for_caller(void) {
    char line[16];
    printf("ready\n");
    fflush(stdout);
    if (read(0, line, sizeof line) < 1) exit(0);
    octets = errors = 0, measured = 1;
    cpu_before = cpu_seconds(), timed_from = nanoseconds();
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(void) {
    double elapsed = (nanoseconds() - timed_from) / 1e9, cpu = cpu_seconds() - cpu_before;
    qsort(latencies, done, sizeof *latencies, compare);
    uint32_t p50 = done ? latencies[done / 2] : 0, p99 = done ? latencies[done * 99 / 100] : 0;
    printf("{\"seconds\": %.4f, \"octets\": %ld, \"done\": %ld, \"errors\": %ld, \"p50_us\": %u, \"p99_us\": %u, "
           "\"gen_cpu\": %.4f}\n",
           elapsed, octets, done, errors, p50, p99, cpu);
    fflush(stdout);
}

/* The three modes: set up, wait for the caller, work, report. */

static void do_doors(void) {
    int redirects = !strcmp(kind, "redirect");
    if (redirects && file) supply(labels, SUPPLIERS);
    exchanges_start(redirects ? REDIRECTS : !strcmp(kind, "stay") ? STAYING : REGISTRATIONS, at_once);
    usleep(200000);
    exchanges_rest();
    usleep(20000);
    wait_for_caller();
    exchanges_begin();
    usleep(span * 1e6);
    Tally tally = exchanges_end();
    done = tally.done, errors += tally.errors, latencies = tally.latencies;
}

static void do_traffic(void) {
    if (file) supply(at_once + pours, SUPPLIERS);
    silent = at_once + pours;
    for (int i = 0; i < at_once + pours; i++) {
        int fd = visitor_socket(one_label(), 1);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        End *end = i < pours ? welcome(streams, fd, swallow, EPOLLIN) : welcome(everything, fd, ping, EPOLLIN);
        end->got = i < pours ? speak(fd, 'B', 1) : speak(fd, 'x', size);
    }
    if (handshakes) knock(handshakes);
    for (int i = 0; i < 100 && silent > 0; i++) serve(after(0.05));
    serve(after(0.2));
    wait_for_caller();
    serve(after(span));
}

static void do_visits(void) {
    if (refills) {
        if (labels > at_once) labels = at_once; /* so that each has its port q when the timed part begins */
        if (pipe2(arrivals, O_CLOEXEC)) die("pipe");
        welcome(everything, arrivals[0], arrived, EPOLLIN);
        supply(at_once, at_once);
        serve(after(0.5));
    } else if (file) {
        supply(waiting ? waiting : visits, SUPPLIERS);
    }
    wait_for_caller();
    left = visits;
    for (int i = 0; i < at_once && left > 0; i++) visit(one_label());
    serve(refills ? after(span) : 0);
}

static int read_options(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:b:t:n:s:f:l:N:P:H:S:c:z:w:g:m:ykdxr")) != -1) {
        switch (option) {
            case 'p': relay_port = atoi(optarg); break;
            case 'b': backend = atoi(optarg); break;
            case 't': door = atoi(optarg); break;
            case 'n': registrar = optarg; break;
            case 's': servers = optarg; break;
            case 'f': file = optarg; break;
            case 'l': agents_label = optarg; break;
            case 'N': at_once = atoi(optarg); break;
            case 'P': pours = atoi(optarg); break;
            case 'H': handshakes = atoi(optarg); break;
            case 'S': span = atof(optarg); break;
            case 'c': visits = atoi(optarg); break;
            case 'z': size = atoi(optarg); break;
            case 'w': waiting = atoi(optarg); break;
            case 'm': kind = optarg; break;
            case 'y': stays = 1; break;
            case 'k': keeps = 1; break;
            case 'd': asks_first = 1; break;
            case 'x': passes = 1; break;
            case 'r': refills = 1; break;
            case 'g': {
                FILE *in = fopen(optarg, "r");
                if (!in) die(optarg);
                greeting_length = fread(greeting, 1, sizeof greeting, in);
                fclose(in);
                break;
            }
            default: return 0;
        }
    }
    return argc - optind == 1;
}

static void prepare(void) {
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    memset(data, 'x', sizeof data);
    latencies = malloc(MOST * sizeof *latencies);
    everything = epoll_create1(EPOLL_CLOEXEC);
    streams = epoll_create1(EPOLL_CLOEXEC);
    welcome(everything, streams, serve_streams, EPOLLIN)->got = at_once ? 1 : 64;
    if (file)
        read_credentials(file);
    else
        credentials = calloc(labels = 1, sizeof *credentials), strcpy(credentials->label, agents_label);
    if (backend) {
        int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        struct sockaddr_in here = local(backend, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, (void *)&here, sizeof here) || listen(fd, 4096)) die("the backend's port");
        welcome(everything, fd, accept_hidden, EPOLLIN);
    }
    for (int i = 0; i < 100 && door && !relay_port && !file && !passes; i++) /* the agent may be on its way */
        if ((relay_port = redirect_port(agents_label)) < 0) relay_port = 0, usleep(100000);
}

int main(int argc, char **argv) {
    const char *mode = argv[argc - 1];
    void (*work)(void) = !strcmp(mode, "doors")     ? do_doors
                         : !strcmp(mode, "traffic") ? do_traffic
                         : !strcmp(mode, "visits")  ? do_visits
                                                    : NULL;
    if (!read_options(argc, argv) || !work) {
        fprintf(stderr, "gen: the beginning of gen.c tells how it is used\n");
        return 2;
    }
    prepare();
    work();
    report();
    while (read(0, data, sizeof data) > 0) {}
    _exit(0); /* threads that still ask are not waited for */
}
