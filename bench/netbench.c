/* Servers and clients that measure a path through the network, with nothing of their own in the way.

   netbench serve PORT                   PORT: tcp, accept and close; PORT+1: tcp, echo; PORT+2: tcp, sink; PORT: udp, echo
   netbench connect HOST PORT SECONDS    new tcp connections, one after another
   netbench flow    HOST PORT SECONDS    new udp flows, one question and answer each
   netbench ping    HOST PORT SECONDS    question and answer of 1 byte on one tcp connection (PORT+1 of serve)
   netbench echo    HOST PORT SECONDS    the same by udp, one flow
   netbench stream  HOST PORT SECONDS    as many bytes as go through one tcp connection (PORT+2 of serve)

   A client prints: count per second, median, 10th percentile and 99th percentile in microseconds, failures
   (stream: bytes per second). Servers end with whoever started them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MANY 4000000
static char buffer[1 << 17];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in address(const char *host, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (!inet_aton(host, &a.sin_addr)) die(host);
    return a;
}

static int listening(int kind, int port) {
    int one = 1, s = socket(AF_INET, kind, 0);
    struct sockaddr_in a = address("0.0.0.0", port);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (void *)&a, sizeof a)) die("bind");
    if (kind == SOCK_STREAM && listen(s, 4096)) die("listen");
    return s;
}

static void udp_echo(int s) {
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        ssize_t n = recvfrom(s, buffer, 64, 0, (void *)&peer, &size);
        if (n > 0) sendto(s, buffer, n, 0, (void *)&peer, size);
    }
}

/* One process for each connection of PORT+1 and PORT+2: there is one at a time. */
static void tcp(int s, int mode) {
    for (;;) {
        int c = accept(s, 0, 0);
        if (c < 0) continue;
        if (mode && !fork()) {
            int one = 1;
            ssize_t n;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            while ((n = recv(c, buffer, sizeof buffer, 0)) > 0)
                if (mode == 1) send(c, buffer, n, MSG_NOSIGNAL);
            exit(0);
        }
        close(c);
    }
}

static int serve(int port) {
    int sockets[] = {listening(SOCK_STREAM, port), listening(SOCK_STREAM, port + 1), listening(SOCK_STREAM, port + 2),
                     listening(SOCK_DGRAM, port)};
    signal(SIGCHLD, SIG_IGN);
    for (int mode = 0; mode < 4; mode++)
        if (!fork()) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (mode == 3) udp_echo(sockets[3]);
            tcp(sockets[mode], mode);
        }
    printf("ready\n");
    fflush(stdout);
    pause();
    return 0;
}

static int connected(int kind, struct sockaddr_in *to) {
    int one = 1, s = socket(AF_INET, kind, 0);
    struct timeval patience = {0, 500000};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(s, (void *)to, sizeof *to)) {
        close(s);
        return -1;
    }
    if (kind == SOCK_STREAM) setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return s;
}

static int asked(int s) {
    char question[8] = {1};
    return send(s, question, 1, MSG_NOSIGNAL) == 1 && recv(s, question, 1, 0) == 1;
}

static int stream(struct sockaddr_in *to, double seconds) {
    int s = connected(SOCK_STREAM, to);
    double began = now(), bytes = 0;
    if (s < 0) die("connect");
    while (now() - began < seconds) {
        ssize_t n = send(s, buffer, sizeof buffer, MSG_NOSIGNAL);
        if (n <= 0) die("send");
        bytes += n;
    }
    printf("%.0f 0 0 0 0\n", bytes / (now() - began));
    return 0;
}

int main(int count, char **word) {
    if (count == 3 && !strcmp(word[1], "serve")) return serve(atoi(word[2]));
    if (count != 5) return 2;
    struct sockaddr_in to = address(word[2], atoi(word[3]));
    double seconds = atof(word[4]), began = now(), *took = malloc(MANY * sizeof *took), t;
    const char *what = word[1];
    int n = 0, failed = 0, s = -1;
    if (!strcmp(what, "stream")) return stream(&to, seconds);
    if (!strcmp(what, "ping") && (s = connected(SOCK_STREAM, &to)) < 0) die("connect");
    if (!strcmp(what, "echo")) s = connected(SOCK_DGRAM, &to);
    while ((t = now()) - began < seconds && n < MANY) {
        int fine;
        if (s >= 0)
            fine = asked(s);
        else {
            int c = connected(what[0] == 'c' ? SOCK_STREAM : SOCK_DGRAM, &to);
            struct linger abort = {1, 0}; /* no TIME_WAIT: ports would run out */
            fine = c >= 0 && (what[0] == 'c' || asked(c));
            if (c >= 0) {
                setsockopt(c, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
                close(c);
            }
        }
        if (fine)
            took[n++] = now() - t;
        else if (++failed > 20)
            break;
    }
    double all = now() - began;
    qsort(took, n, sizeof *took, compare);
    if (n)
        printf("%.1f %.2f %.2f %.2f %d\n", n / all, took[n / 2] * 1e6, took[n / 10] * 1e6, took[(int)(n * 0.99)] * 1e6,
               failed);
    else
        printf("0 0 0 0 %d\n", failed);
    return n == 0;
}
