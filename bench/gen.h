/* What gen.c (sockets in one epoll loop) and tls.c (the front door) share. */
#pragma once
#include <stdint.h>

extern int door;              /* the front door's port; 0: a plain relay without one */
extern const char *registrar; /* its names */
extern const char *servers;

typedef struct {
    char label[64], id[40];
    unsigned char secret[64];
    unsigned secret_length;
} Credential;

extern Credential *credentials; /* one a label */
extern int labels;

void read_credentials(const char *file);

/* A connected socket to a port of 127.0.0.1; blocking or not; SPREAD: from one of 16 source addresses. */
int dial(int port, int blocking, int spread);
uint64_t nanoseconds(void);

/* GET for LABEL's name: the port that a 307 names, or -1. */
int redirect_port(const char *label);
/* A waiting hidden server's connection, non-blocking: by a port p, or staying.  -1: refused. */
int register_responder(const Credential *credential, int stays);
/* The ClientHello that asks for LABEL's name; returns its length. */
int client_hello(const char *label, char *buffer, int size);

typedef enum { REDIRECTS, REGISTRATIONS, STAYING } Exchanges;
typedef struct {
    uint32_t *latencies; /* microseconds */
    long done, errors;
    double seconds;
} Tally;

/* THREADS clients, one exchange after the other each; `rest` holds them until `begin`, which begins to count. */
void exchanges_start(Exchanges kind, int threads);
void exchanges_rest(void);
void exchanges_begin(void);
Tally exchanges_end(void);
/* RATE redirects a second, by patient threads in the background. */
void knock(int rate);
