/* Clients of the front door: blocking sockets, one thread a client, a full TLS handshake each time. */
#define _GNU_SOURCE
#include "gen.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 1000000 /* latencies kept of one thread */

static SSL_CTX *context(void) {
    static SSL_CTX *made;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (!made) {
        made = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_verify(made, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_min_proto_version(made, TLS1_3_VERSION);
    }
    pthread_mutex_unlock(&lock);
    return made;
}

/* Ask HOST for something and read to the end.  The answer's length or -1; with KEEP, *KEEP becomes the
 * socket once TLS is parted from in both directions. */
static int ask(const char *host, const char *request, char *answer, int size, int spread, int *keep) {
    int fd = dial(door, 1, spread), length = 0, count = -1;
    if (fd < 0) return -1;
    SSL *ssl = SSL_new(context());
    SSL_set_fd(ssl, fd);
    SSL_set_tlsext_host_name(ssl, host);
    if (SSL_connect(ssl) == 1 && SSL_write(ssl, request, strlen(request)) > 0)
        while (length < size - 1 && (count = SSL_read(ssl, answer + length, size - 1 - length)) > 0)
            length += count;
    answer[length] = 0;
    int parted = SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN;
    if (keep && parted && strstr(answer, " 200 ") && SSL_shutdown(ssl) >= 0)
        *keep = fd;
    else
        close(fd);
    SSL_free(ssl);
    ERR_clear_error();
    return length ? length : -1;
}

int redirect_port(const char *label) {
    char host[200], request[600], answer[4096];
    snprintf(host, sizeof host, "%s.%s", label, servers);
    snprintf(request, sizeof request,
             "GET /some/page?x=1 HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", host);
    if (ask(host, request, answer, sizeof answer, 1, NULL) < 0 || strncmp(answer, "HTTP/1.1 307", 12)) return -1;
    char *location = strcasestr(answer, "\nlocation: https://");
    char *colon = location ? strchr(location + 19, ':') : NULL;
    return colon ? atoi(colon + 1) : -1;
}

static unsigned totp(const Credential *credential) { /* RFC 6238, SHA1, 30 s, 6 digits */
    uint64_t step = time(NULL) / 30;
    unsigned char counter[8], mac[EVP_MAX_MD_SIZE];
    for (int i = 0; i < 8; i++) counter[i] = step >> 8 * (7 - i);
    HMAC(EVP_sha1(), credential->secret, credential->secret_length, counter, 8, mac, NULL);
    unsigned char *at = mac + (mac[19] & 15);
    return ((at[0] & 127u) << 24 | at[1] << 16 | at[2] << 8 | at[3]) % 1000000;
}

int register_responder(const Credential *credential, int stays) {
    char request[600], answer[4096];
    int fd = -1;
    snprintf(request, sizeof request,
             "PUT /register/%s HTTP/1.1\r\nHost: %s\r\n%s"
             "Authorization: TOTP username=\"%s\", response=\"%06u\"\r\n\r\n",
             credential->label, registrar, stays ? "TAAS-Stay: 1\r\n" : "", credential->id, totp(credential));
    if (ask(registrar, request, answer, sizeof answer, 0, stays ? &fd : NULL) < 0) return -1;
    char *body = strstr(answer, "\r\n\r\n"), *colon = body ? strchr(body, ':') : NULL;
    if (!stays && colon && strstr(answer, " 200 ")) fd = dial(atoi(colon + 1), 1, 0);
    if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

int client_hello(const char *label, char *buffer, int size) {
    char host[200];
    snprintf(host, sizeof host, "%s.%s", label, servers);
    SSL *ssl = SSL_new(context());
    BIO *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), out);
    SSL_set_tlsext_host_name(ssl, host);
    SSL_connect(ssl); /* wants to read the answer */
    int length = BIO_read(out, buffer, size);
    SSL_free(ssl);
    ERR_clear_error();
    return length;
}

void read_credentials(const char *file) {
    FILE *in = fopen(file, "r");
    char hex[129];
    credentials = calloc(10000, sizeof *credentials);
    for (Credential *c = credentials; in && fscanf(in, "%63s %39s %128s", c->label, c->id, hex) == 3; c++, labels++)
        for (c->secret_length = 0; hex[2 * c->secret_length]; c->secret_length++)
            sscanf(hex + 2 * c->secret_length, "%2hhx", c->secret + c->secret_length);
    if (!labels) perror(file), exit(1);
    fclose(in);
}

/* Many clients at once. */

static struct {
    pthread_t thread;
    Tally tally;
} clients[256];
static Exchanges wanted;
static int count_of_clients;
static volatile int resting, begun, ended;
static uint64_t began;

static void *client(void *argument) {
    long self = (long)argument, next = self;
    Tally *tally = &clients[self].tally;
    int counted = 0;
    while (!ended) {
        while (resting && !begun) usleep(200);
        if (begun && !counted) counted = 1, tally->done = tally->errors = 0;
        uint64_t start = nanoseconds();
        const Credential *credential = &credentials[next % labels];
        int fd = -1, good;
        if (wanted == REDIRECTS) {
            good = redirect_port(credential->label) > 0;
        } else {
            fd = register_responder(credential, wanted == STAYING);
            good = fd >= 0;
        }
        next += count_of_clients;
        if (!good) {
            tally->errors++;
            usleep(1000);
        } else if (tally->done < MOST) {
            tally->latencies[tally->done++] = (nanoseconds() - start) / 1000;
        }
        if (fd >= 0) close(fd);
    }
    return NULL;
}

void exchanges_start(Exchanges kind, int threads) {
    wanted = kind;
    count_of_clients = threads;
    for (long i = 0; i < threads; i++) {
        clients[i].tally.latencies = malloc(MOST * sizeof(uint32_t));
        pthread_create(&clients[i].thread, NULL, client, (void *)i);
    }
}

void exchanges_rest(void) {
    resting = 1;
}

void exchanges_begin(void) {
    began = nanoseconds();
    begun = 1;
}

Tally exchanges_end(void) {
    Tally sum = {.seconds = (nanoseconds() - began) / 1e9};
    ended = 1;
    for (int i = 0; i < count_of_clients; i++) sum.done += clients[i].tally.done, sum.errors += clients[i].tally.errors;
    sum.latencies = malloc((sum.done + 1) * sizeof(uint32_t));
    long at = 0;
    for (int i = 0; i < count_of_clients; i++) {
        long here = clients[i].tally.done < sum.done - at ? clients[i].tally.done : sum.done - at;
        memcpy(sum.latencies + at, clients[i].tally.latencies, here * sizeof(uint32_t));
        at += here;
    }
    return sum;
}

static int knock_rate;
#define KNOCKERS 4

static void *knocker(void *argument) {
    uint64_t pause = 1000000000ull * KNOCKERS / knock_rate, next = nanoseconds() + pause * (long)argument / KNOCKERS;
    setpriority(PRIO_PROCESS, syscall(SYS_gettid), 19); /* the ping-pong must not wait for us */
    for (;; next += pause) {
        struct timespec until = {next / 1000000000, next % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        if (redirect_port(credentials[0].label) < 0) fprintf(stderr, "gen: a knock failed\n");
    }
    return NULL;
}

void knock(int rate) {
    pthread_t thread;
    knock_rate = rate;
    for (long i = 0; i < KNOCKERS; i++) pthread_create(&thread, NULL, knocker, (void *)i);
}
