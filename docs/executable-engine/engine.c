/* An enginecmp engine that is no Python: the worker protocol (../worker-protocol.md) in C, and nothing else.
 * Its "model" is a hash, so the equivalence gate calls it not comparable; put an engine in place of `next_token`.
 * Build: cc -O2 -o engine engine.c */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int host;             /* the socket: argv[1] */
static uint8_t *out;         /* the answer being built, msgpack */
static size_t used, room;

static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static uint32_t next_token(uint32_t token, uint32_t vocabulary) { return (token * 2654435761u + 12345u) % vocabulary; }

/* --- writing msgpack: every length in its largest form, which is always right --- */
static void put(const void *bytes, size_t n) {
    while (used + n > room) out = realloc(out, room = room ? 2 * room : 4096);
    memcpy(out + used, bytes, n); used += n;
}
static void head(uint8_t tag, uint32_t n) { uint8_t b[5] = {tag, n >> 24, n >> 16, n >> 8, n}; put(b, 5); }
static void map(uint32_t n) { head(0xdf, n); }
static void array(uint32_t n) { head(0xdd, n); }
static void text(const char *s) { head(0xdb, strlen(s)); put(s, strlen(s)); }
static void integer(int64_t v) { uint8_t b[9] = {0xd3}; for (int i = 0; i < 8; i++) b[1 + i] = v >> (56 - 8 * i); put(b, 9); }
static void nothing(void) { uint8_t b = 0xc0; put(&b, 1); }

/* --- reading msgpack: a cursor that can step over a value, and look a key up in a map --- */
static uint64_t big_endian(const uint8_t *p, int n) { uint64_t v = 0; while (n--) v = v << 8 | *p++; return v; }
static uint32_t count(const uint8_t **p, uint8_t fix, uint8_t mask, uint8_t tag16) { /* of a map or an array */
    uint8_t t = *(*p)++;
    if ((t & ~mask) == fix) return t & mask;
    int n = t == tag16 ? 2 : 4;
    uint32_t v = big_endian(*p, n); *p += n; return v;
}
static const uint8_t *skip(const uint8_t *p) {
    uint8_t t = *p;
    if (t < 0x80 || t >= 0xe0 || t == 0xc0 || t == 0xc2 || t == 0xc3) return p + 1;
    if (t < 0x90 || t == 0xde || t == 0xdf) { for (uint32_t n = 2 * count(&p, 0x80, 15, 0xde); n--;) p = skip(p); return p; }
    if (t < 0xa0 || t == 0xdc || t == 0xdd) { for (uint32_t n = count(&p, 0x90, 15, 0xdc); n--;) p = skip(p); return p; }
    if (t < 0xc0) return p + 1 + (t & 31);
    if (t == 0xc4 || t == 0xd9) return p + 2 + p[1];
    if (t == 0xc5 || t == 0xda) return p + 3 + big_endian(p + 1, 2);
    if (t == 0xc6 || t == 0xdb) return p + 5 + big_endian(p + 1, 4);
    static const uint8_t width[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8}; /* float32 (0xca) to int64 (0xd3) */
    return p + 1 + width[t - 0xca];
}
static int is_text(const uint8_t *p, const char *s) { size_t n = strlen(s); return *p == (0xa0 | n) && !memcmp(p + 1, s, n); }
static const uint8_t *find(const uint8_t *p, const char *key) { /* short keys only: all of the protocol are */
    for (uint32_t n = count(&p, 0x80, 15, 0xde); n--; p = skip(skip(p))) if (is_text(p, key)) return skip(p);
    return NULL;
}
static int64_t number(const uint8_t *p) {
    static const uint8_t width[] = {1, 2, 4, 8};
    return *p < 0x80 ? *p : (int64_t)big_endian(p + 1, width[(*p - 0xcc) & 3]);
}

static int read_all(void *to, size_t n) { for (uint8_t *p = to; n;) { ssize_t got = read(host, p, n); if (got <= 0) return 0; p += got; n -= got; } return 1; }
static void send_answer(void) {
    uint8_t b[8] = {'C', 'M', 'P', '1', used, used >> 8, used >> 16, used >> 24}; /* length: little endian */
    if (write(host, b, 8) != 8) exit(1);
    for (size_t done = 0; done < used;) { ssize_t n = write(host, out + done, used - done); if (n <= 0) exit(1); done += n; }
    used = 0;
}
static void fail(const char *why) { used = 0; map(1); text("error"); map(3); text("type"); text("EngineError"); text("message"); text(why); text("traceback"); text(""); }

int main(int argc, char **argv) {
    if (argc < 3) { fprintf(stderr, "started by cmp as: engine SOCKET_FD PROGRESS_FD\n"); return 2; }
    host = atoi(argv[1]);
    uint32_t vocabulary = 0, context = 0;
    uint8_t b[8];
    map(1); text("ok"); integer(getpid()); send_answer();
    while (read_all(b, 8)) { /* the host closing its end is how we are told to go */
        uint32_t length = b[4] | b[5] << 8 | b[6] << 16 | (uint32_t)b[7] << 24;
        uint8_t *message = malloc(length);
        if (!read_all(message, length)) return 1;
        const uint8_t *op = find(message, "op");
        if (is_text(op, "probe")) { map(1); text("ok"); map(3); text("ok"); uint8_t yes = 0xc3; put(&yes, 1); text("reason"); text(""); text("fix"); text(""); }
        else if (is_text(op, "load")) {
            int64_t start = now_ns(); /* load the file find(find(message, "model"), "path") here */
            vocabulary = number(find(find(message, "model"), "vocabulary"));
            context = number(find(find(message, "options"), "context_tokens"));
            map(1); text("ok"); map(3); text("start_ns"); integer(start); text("end_ns"); integer(now_ns()); text("metrics"); map(0);
        } else if (is_text(op, "request")) {
            const uint8_t *ids = find(message, "token_ids");
            int64_t n = number(find(message, "output_tokens")), prompt = count(&ids, 0x90, 15, 0xdc);
            if (prompt + n - 1 > context) { fail("more tokens than the context holds"); send_answer(); free(message); continue; }
            int64_t *stamps = malloc(n * sizeof *stamps), start = now_ns();
            uint32_t *tokens = malloc(n * sizeof *tokens), token = 0;
            for (int64_t i = 0; i < prompt; i++, ids = skip(ids)) token = token * 31 + number(ids);
            for (int64_t i = 0; i < n; i++) { token = tokens[i] = next_token(token, vocabulary); stamps[i] = now_ns(); }
            int64_t end = now_ns();
            map(1); text("ok"); map(8); text("start_ns"); integer(start); text("end_ns"); integer(end); text("token_ns"); array(n);
            for (int64_t i = 0; i < n; i++) integer(stamps[i]);
            text("ids"); array(n); for (int64_t i = 0; i < n; i++) integer(tokens[i]);
            text("output_tokens"); integer(n); text("metrics"); map(0); text("where"); text("decode"); text("error"); nothing();
            free(stamps); free(tokens);
        } else if (is_text(op, "unload")) { map(1); text("ok"); nothing(); }
        else fail("this engine does not offer that operation");
        send_answer(); free(message);
    }
    return 0;
}
