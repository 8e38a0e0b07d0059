/*
 * Tells plugpull what a program promises. One header, C99 and POSIX.
 *
 *     struct plugpull promises;
 *     plugpull_open(&promises);                     // once for each thread
 *     plugpull_begin(&promises, "notes/1", value);  // before it begins to write
 *     ...                                           // write, sync, ...
 *     plugpull_ack(&promises, "notes/1");           // after it gave its word
 *     plugpull_close(&promises);
 *
 * Each call returns 0 when plugpull has recorded it, and -1 when not: `error`
 * in the structure says why, and the test run is void. Outside a test, where
 * the environment has no PLUGPULL, the calls do nothing and return 0. A value
 * of NULL is a removal. `plugpull_ack` means the latest begin of the key on the
 * same structure.
 */
#ifndef PLUGPULL_H
#define PLUGPULL_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct plugpull {
    int fd; /* -1 outside a test */
    char error[512];
};

static inline int plugpull_failed_(struct plugpull *p, const char *what)
{
    snprintf(p->error, sizeof p->error, "%s: %s", what, strerror(errno));
    return -1;
}

/* Connect to the promise socket. */
static inline int plugpull_open(struct plugpull *p)
{
    const char *path = getenv("PLUGPULL");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    p->fd = -1;
    p->error[0] = '\0';
    if (path == NULL || *path == '\0')
        return 0;
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return plugpull_failed_(p, path);
    }
    strcpy(address.sun_path, path);
    p->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (p->fd < 0)
        return plugpull_failed_(p, "socket");
    if (connect(p->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int saved = errno;
        close(p->fd);
        p->fd = -1;
        errno = saved;
        return plugpull_failed_(p, path);
    }
    return 0;
}

static inline void plugpull_close(struct plugpull *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}

/* Send a line, wait for its answer. */
static inline int plugpull_line_(struct plugpull *p, const char *line, size_t length)
{
    size_t have = 0;
    while (length > 0) {
        ssize_t sent = send(p->fd, line, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return plugpull_failed_(p, "send to plugpull");
        line += sent;
        length -= (size_t)sent;
    }
    for (;;) {
        char byte;
        ssize_t got = read(p->fd, &byte, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return plugpull_failed_(p, "read from plugpull");
        if (got == 0 || byte == '\n')
            break;
        if (have < sizeof p->error - 1)
            p->error[have++] = byte;
    }
    p->error[have] = '\0';
    if (strcmp(p->error, "ok") == 0) {
        p->error[0] = '\0';
        return 0;
    }
    if (have == 0)
        strcpy(p->error, "plugpull hung up");
    return -1;
}

static inline char *plugpull_encode_(char *to, const char *text)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/";
    static const char digits[] = "0123456789ABCDEF";
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if (strchr(plain, byte) != NULL) {
            *to++ = (char)byte;
        } else {
            *to++ = '%';
            *to++ = digits[byte >> 4];
            *to++ = digits[byte & 15];
        }
    }
    return to;
}

static inline int plugpull_say_(struct plugpull *p, const char *word, const char *key,
                                const char *value)
{
    char *line, *end;
    int result;
    if (p->fd < 0)
        return 0;
    line = malloc(strlen(word) + 3 * (strlen(key) + (value ? strlen(value) : 0)) + 4);
    if (line == NULL)
        return plugpull_failed_(p, "malloc");
    end = line + strlen(strcpy(line, word));
    *end++ = ' ';
    end = plugpull_encode_(end, key);
    if (value != NULL) {
        *end++ = ' ';
        end = plugpull_encode_(end, value);
    }
    *end++ = '\n';
    result = plugpull_line_(p, line, (size_t)(end - line));
    free(line);
    return result;
}

/* The key is about to get this value; with NULL, to be removed. */
static inline int plugpull_begin(struct plugpull *p, const char *key, const char *value)
{
    return plugpull_say_(p, "begin", key, value);
}

/* The program now promises the latest begin of the key. */
static inline int plugpull_ack(struct plugpull *p, const char *key)
{
    return plugpull_say_(p, "ack", key, NULL);
}

/* A reader was given this value of the key. */
static inline int plugpull_served(struct plugpull *p, const char *key, const char *value)
{
    return plugpull_say_(p, "served", key, value);
}

/* Name this moment, in one line; a scenario can cut the power there. */
static inline int plugpull_mark(struct plugpull *p, const char *text)
{
    size_t length = strlen(text);
    char *line;
    int result;
    if (p->fd < 0)
        return 0;
    if (strchr(text, '\n') != NULL) {
        strcpy(p->error, "a mark is one line");
        return -1;
    }
    line = malloc(length + 7);
    if (line == NULL)
        return plugpull_failed_(p, "malloc");
    snprintf(line, length + 7, "mark %s\n", text);
    result = plugpull_line_(p, line, length + 6);
    free(line);
    return result;
}

#endif
