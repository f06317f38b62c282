/* A clock that can be set for some processes only: LD_PRELOAD=clock.so CLOCK_OFFSET_FILE=file
   The file holds a number of seconds, which is added to the time of day; monotonic clocks stay as they are,
   as they do when a real clock is set. The file is read anew twice a second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real)(clockid_t, struct timespec *);
static _Atomic long offset_s, read_at_ms = -1000;

static void __attribute__((constructor)) begin(void) { real = dlsym(RTLD_NEXT, "clock_gettime"); }

static long offset(void) {
    struct timespec now;
    real(CLOCK_MONOTONIC, &now);
    long now_ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (now_ms - read_at_ms > 500) {
        char text[32] = {0};
        const char *path = getenv("CLOCK_OFFSET_FILE");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        read_at_ms = now_ms;
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) offset_s = atol(text);
            close(file);
        }
    }
    return offset_s;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    if (!real) begin();
    int status = real(id, now);
    if (status == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
