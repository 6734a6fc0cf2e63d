/* Loaded before libc (LD_PRELOAD): a disk that is slow or broken, and a clock that is set.

   The file that FAULTS names holds three doubles: seconds a write of a bag takes for each megabyte,
   the errno that it fails with (0: none), and seconds that the wall clock is off. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile double *faults;

__attribute__((constructor)) static void open_faults(void) {
  const char *path = getenv("FAULTS");
  int file = path ? open(path, O_RDONLY) : -1;
  void *map = file < 0 ? MAP_FAILED : mmap(NULL, 24, PROT_READ, MAP_SHARED, file, 0);
  if (map != MAP_FAILED) faults = map;
}

static int is_bag(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 5) return 0;
  path[length] = 0;
  return strcmp(path + length - 5, ".mcap") == 0;
}

ssize_t write(int file, const void *data, size_t size) {
  static ssize_t (*original)(int, const void *, size_t);
  if (!original) original = dlsym(RTLD_NEXT, "write");
  if (faults && (faults[0] > 0 || faults[1] > 0) && is_bag(file)) {
    if (faults[1] > 0) {
      errno = (int)faults[1];
      return -1;
    }
    /* In slices, so that the disk can be mended while a write waits for it. */
    for (double waited = 0; waited < faults[0] * size * 1e-6; waited += 0.01) usleep(10000);
  }
  return original(file, data, size);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*original)(clockid_t, struct timespec *);
  if (!original) original = dlsym(RTLD_NEXT, "clock_gettime");
  int code = original(clock, now);
  if (faults && clock == CLOCK_REALTIME) now->tv_sec += (time_t)faults[2];
  return code;
}
