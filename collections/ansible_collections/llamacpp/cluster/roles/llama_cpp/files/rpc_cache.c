// Copyright: (c) 2026, the llamacpp.cluster authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
//
// FNV-1a-64 of many byte ranges at once, and files named by it: the cache of ggml-rpc-server -c.
//
//   llamacpp-rpc-cache hash FILE             lines "OFFSET BYTES" -> "HASH", in the order of the lines
//   llamacpp-rpc-cache seed FILE DIRECTORY   the same lines -> "HASH new|there"; the ranges become entries
//   llamacpp-rpc-cache check DIRECTORY       lines "NAME" -> "NAME ok|bad|gone BYTES"
//   llamacpp-rpc-cache version
//
// Lines come from standard input, all of them before work begins. Exit status: 0; 1 when something could not be read
// or written (one sentence on standard error, no entry without its whole content); 2 for a wrong command line.
// --threads N: so many threads instead of one a processor. Every 64 MiB a line "= BYTES" says how far it is.
//
// Each byte's step of FNV-1a needs the result of the one before (fnv_hash, ggml/src/ggml-rpc/ggml-rpc.cpp, b11434), so
// one range leaves a core idle for most of the time. Every thread therefore works on LANES ranges in turn, byte by byte.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION "1"
#define LANES 6
#define BLOCK (256 * 1024)
#define TOLD (64ull << 20)
#define MAX_THREADS 256
#define NAME_BYTES 17
#define PATH_BYTES 4096
#define BASIS 0xcbf29ce484222325ull
#define PRIME 0x100000001b3ull

enum mode { HASH, SEED, CHECK };

struct job {
    uint64_t offset;
    uint64_t bytes;
    uint64_t hash;
    char name[NAME_BYTES]; // CHECK: what the file is called
    const char *state;     // SEED: new, there; CHECK: ok, bad, gone
};

// One range under way.
struct lane {
    struct job *job;
    int input;
    int output; // SEED: the file that is to become an entry
    uint64_t done;
    uint64_t hash;
    uint8_t *block;
    size_t filled;
    size_t used;
    char temporary[PATH_BYTES];
};

static enum mode mode;
static const char *directory;
static const char *source_name;
static int source = -1;
static struct job **jobs; // the longest first
static size_t job_count;
static size_t next_job;
static uint64_t hashed, told;
static bool failed;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

// Note the first failure; nobody takes another range then.
static void fail(const char *format, ...) {
    pthread_mutex_lock(&guard);
    if (!failed) {
        va_list values;
        va_start(values, format);
        fputs("llamacpp-rpc-cache: ", stderr);
        vfprintf(stderr, format, values);
        fputc('\n', stderr);
        va_end(values);
        failed = true;
    }
    pthread_mutex_unlock(&guard);
}

static struct job *take(void) {
    pthread_mutex_lock(&guard);
    struct job *job = failed || next_job == job_count ? NULL : jobs[next_job++];
    pthread_mutex_unlock(&guard);
    return job;
}

static void tell(uint64_t bytes) {
    pthread_mutex_lock(&guard);
    hashed += bytes;
    if (hashed - told >= TOLD) {
        told = hashed;
        printf("= %" PRIu64 "\n", hashed);
        fflush(stdout);
    }
    pthread_mutex_unlock(&guard);
}

static bool path_of(char *path, const char *name) {
    int length = snprintf(path, PATH_BYTES, "%s/%s", directory, name);
    if (length < 0 || length >= PATH_BYTES) {
        fail("%s: the path is too long", directory);
        return false;
    }
    return true;
}

// Open the entry of a job of CHECK. What is no regular file is nobody's entry: it is bad, and not read.
static bool open_entry(struct lane *lane) {
    struct job *job = lane->job;
    struct stat info;
    char path[PATH_BYTES];
    if (!path_of(path, job->name)) {
        return false;
    }
    lane->input = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (lane->input < 0) {
        if (errno != ENOENT && errno != ELOOP) {
            fail("%s: %s", path, strerror(errno));
        }
        job->state = errno == ENOENT ? "gone" : "bad";
        return false;
    }
    if (fstat(lane->input, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(lane->input);
        job->state = "bad";
        return false;
    }
    job->bytes = (uint64_t)info.st_size;
    return true;
}

static bool open_temporary(struct lane *lane) {
    static uint64_t count;
    char name[64];
    pthread_mutex_lock(&guard);
    uint64_t number = count++;
    pthread_mutex_unlock(&guard);
    snprintf(name, sizeof(name), ".seed-%ld-%" PRIu64, (long)getpid(), number);
    if (!path_of(lane->temporary, name)) {
        return false;
    }
    lane->output = open(lane->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (lane->output < 0) {
        fail("%s: %s", lane->temporary, strerror(errno));
        return false;
    }
    return true;
}

// Give a lane its next range; false when there is none. Jobs that need no reading end here.
static bool begin(struct lane *lane) {
    while ((lane->job = take()) != NULL) {
        lane->done = 0;
        lane->filled = lane->used = 0;
        lane->hash = BASIS;
        lane->input = source;
        lane->output = -1;
        if ((mode == CHECK && !open_entry(lane)) || (mode == SEED && !open_temporary(lane))) {
            continue;
        }
        return true;
    }
    return false;
}

static void close_lane(struct lane *lane) {
    if (mode == CHECK && lane->input >= 0) {
        close(lane->input);
    }
    if (lane->output >= 0) {
        close(lane->output);
        unlink(lane->temporary);
    }
    lane->job = NULL;
}

static bool same_size(const char *path, uint64_t bytes) {
    struct stat info;
    return lstat(path, &info) == 0 && S_ISREG(info.st_mode) && (uint64_t)info.st_size == bytes;
}

// Name the entry. Synced before: after a loss of power, a name without its content would be served as it is.
static void finish_entry(struct lane *lane) {
    char name[NAME_BYTES], path[PATH_BYTES];
    snprintf(name, sizeof(name), "%016" PRIx64, lane->hash);
    if (!path_of(path, name)) {
        return;
    }
    if (same_size(path, lane->done)) {
        lane->job->state = "there";
        return;
    }
    if (fchmod(lane->output, 0644) != 0 || fdatasync(lane->output) != 0 || rename(lane->temporary, path) != 0) {
        fail("%s: %s", path, strerror(errno));
        return;
    }
    close(lane->output);
    lane->output = -1;
    lane->job->state = "new";
}

static void finish(struct lane *lane) {
    lane->job->hash = lane->hash;
    if (mode == SEED) {
        finish_entry(lane);
    } else if (mode == CHECK) {
        char name[NAME_BYTES];
        snprintf(name, sizeof(name), "%016" PRIx64, lane->hash);
        lane->job->state = strcmp(name, lane->job->name) == 0 ? "ok" : "bad";
    }
    close_lane(lane);
}

static bool write_all(struct lane *lane) {
    for (size_t sent = 0; sent < lane->filled;) {
        ssize_t count = write(lane->output, lane->block + sent, lane->filled - sent);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0) {
            fail("%s: %s", directory, strerror(errno));
            return false;
        }
        sent += (size_t)count;
    }
    return true;
}

// Read the next block of a lane; false when its range is over, or cannot be read.
static bool fill(struct lane *lane) {
    struct job *job = lane->job;
    if (lane->done == job->bytes) {
        finish(lane);
        return false;
    }
    uint64_t left = job->bytes - lane->done;
    size_t wanted = left < BLOCK ? (size_t)left : BLOCK;
    lane->filled = lane->used = 0;
    while (lane->filled < wanted) {
        ssize_t count = pread(lane->input, lane->block + lane->filled, wanted - lane->filled,
                              (off_t)(job->offset + lane->done + lane->filled));
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count == 0 && mode == CHECK) {
            // A worker began to write it again.
            job->state = "bad";
            close_lane(lane);
            return false;
        }
        if (count <= 0) {
            fail("%s: %s at byte %" PRIu64 ", %" PRIu64 " bytes were to come", mode == CHECK ? job->name : source_name,
                 count < 0 ? strerror(errno) : "the file ends", job->offset + lane->done + lane->filled,
                 left - lane->filled);
            close_lane(lane);
            return false;
        }
        lane->filled += (size_t)count;
    }
    lane->done += lane->filled;
    tell(lane->filled);
    if (mode == SEED && !write_all(lane)) {
        close_lane(lane);
        return false;
    }
    return true;
}

// The same number of bytes of every lane. Unrolled, all of it is in registers; -O2 alone leaves the inner loop a loop,
// through memory, which is three times as slow.
#define STEP_TOGETHER(COUNT)                                                                                           \
    static void step_##COUNT(struct lane **lanes, size_t bytes) {                                                      \
        uint64_t hash[COUNT];                                                                                          \
        const uint8_t *data[COUNT];                                                                                    \
        for (int lane = 0; lane < COUNT; lane++) {                                                                     \
            hash[lane] = lanes[lane]->hash;                                                                            \
            data[lane] = lanes[lane]->block + lanes[lane]->used;                                                       \
        }                                                                                                              \
        for (size_t index = 0; index < bytes; index++) {                                                               \
            _Pragma("GCC unroll 16")                                                                                   \
            for (int lane = 0; lane < COUNT; lane++) {                                                                 \
                hash[lane] = (hash[lane] ^ data[lane][index]) * PRIME;                                                 \
            }                                                                                                          \
        }                                                                                                              \
        for (int lane = 0; lane < COUNT; lane++) {                                                                     \
            lanes[lane]->hash = hash[lane];                                                                            \
            lanes[lane]->used += bytes;                                                                                \
        }                                                                                                              \
    }

STEP_TOGETHER(1)
STEP_TOGETHER(2)
STEP_TOGETHER(3)
STEP_TOGETHER(4)
STEP_TOGETHER(5)
STEP_TOGETHER(6)

static void (*const steps[LANES])(struct lane **, size_t) = {step_1, step_2, step_3, step_4, step_5, step_6};

static void *work(void *unused) {
    struct lane lanes[LANES] = {{0}};
    uint8_t *blocks = malloc((size_t)LANES * BLOCK);
    if (blocks == NULL) {
        fail("no memory for blocks");
        return unused;
    }
    for (int index = 0; index < LANES; index++) {
        lanes[index].block = blocks + (size_t)index * BLOCK;
        lanes[index].input = lanes[index].output = -1;
    }
    for (;;) {
        struct lane *active[LANES];
        int count = 0;
        size_t bytes = BLOCK;
        for (int index = 0; index < LANES; index++) {
            struct lane *lane = &lanes[index];
            while (lane->job != NULL || begin(lane)) {
                if (lane->used < lane->filled || fill(lane)) {
                    active[count++] = lane;
                    bytes = lane->filled - lane->used < bytes ? lane->filled - lane->used : bytes;
                    break;
                }
            }
        }
        if (count == 0) {
            break;
        }
        steps[count - 1](active, bytes);
    }
    free(blocks);
    return unused;
}

static void wrong(const char *line, const char *what) {
    fprintf(stderr, "llamacpp-rpc-cache: standard input: %s: %.*s\n", what, (int)strcspn(line, "\n"), line);
    exit(2);
}

static bool is_name(const char *text) {
    return strlen(text) == NAME_BYTES - 1 && strspn(text, "0123456789abcdef") == NAME_BYTES - 1;
}

static struct job parse(char *line) {
    struct job job = {.state = "gone"};
    char *end;
    if (mode == CHECK) {
        line[strcspn(line, "\n")] = '\0';
        if (!is_name(line)) {
            wrong(line, "no name of an entry");
        }
        memcpy(job.name, line, NAME_BYTES);
        return job;
    }
    errno = 0;
    job.offset = strtoull(line, &end, 10);
    bool good = end != line && *end == ' ' && strchr(line, '-') == NULL;
    char *second = end;
    job.bytes = strtoull(second, &end, 10);
    good = good && end != second && (*end == '\n' || *end == '\0') && errno == 0;
    if (!good || job.offset > INT64_MAX || job.bytes > INT64_MAX - job.offset) {
        wrong(line, "no offset and number of bytes");
    }
    return job;
}

static struct job *read_jobs(void) {
    struct job *all = NULL;
    size_t room = 0;
    char *line = NULL;
    size_t line_room = 0;
    while (getline(&line, &line_room, stdin) > 0) {
        if (job_count == room) {
            room = room ? 2 * room : 64;
            all = realloc(all, room * sizeof(*all));
            if (all == NULL) {
                wrong(line, "no memory for so many lines");
            }
        }
        all[job_count++] = parse(line);
    }
    free(line);
    return all;
}

static int longer(const void *one, const void *other) {
    uint64_t left = (*(struct job *const *)one)->bytes, right = (*(struct job *const *)other)->bytes;
    return left > right ? -1 : left < right;
}

static long processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

static void run(long threads) {
    pthread_t started[MAX_THREADS];
    long count = 0;
    while (count < threads - 1 && pthread_create(&started[count], NULL, work, NULL) == 0) {
        count++;
    }
    work(NULL);
    while (count > 0) {
        pthread_join(started[--count], NULL);
    }
}

static void print(const struct job *all) {
    for (size_t index = 0; index < job_count; index++) {
        const struct job *job = &all[index];
        if (mode == CHECK) {
            printf("%s %s %" PRIu64 "\n", job->name, job->state, job->bytes);
        } else if (mode == SEED) {
            printf("%016" PRIx64 " %s\n", job->hash, job->state);
        } else {
            printf("%016" PRIx64 "\n", job->hash);
        }
    }
}

static int usage(void) {
    fputs("usage: llamacpp-rpc-cache [--threads N] hash FILE | seed FILE DIRECTORY | check DIRECTORY | version\n", stderr);
    return 2;
}

int main(int count, char **words) {
    long threads = processors();
    if (count > 2 && strcmp(words[1], "--threads") == 0) {
        char *end;
        threads = strtol(words[2], &end, 10);
        if (*end != '\0' || threads < 1) {
            return usage();
        }
        count -= 2;
        words += 2;
    }
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    if (count == 2 && strcmp(words[1], "version") == 0) {
        puts(VERSION);
        return 0;
    }
    if (count == 3 && strcmp(words[1], "hash") == 0) {
        mode = HASH;
    } else if (count == 4 && strcmp(words[1], "seed") == 0) {
        mode = SEED;
        directory = words[3];
    } else if (count == 3 && strcmp(words[1], "check") == 0) {
        mode = CHECK;
        directory = words[2];
    } else {
        return usage();
    }
    if (mode != CHECK) {
        source_name = words[2];
        source = open(source_name, O_RDONLY | O_CLOEXEC);
        if (source < 0) {
            fail("%s: %s", source_name, strerror(errno));
            return 1;
        }
    }
    // Whoever asked is gone, and with it the lock under which entries are made.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct job *all = read_jobs();
    jobs = calloc(job_count + 1, sizeof(*jobs));
    if (jobs == NULL) {
        fail("no memory for %zu ranges", job_count);
        return 1;
    }
    for (size_t index = 0; index < job_count; index++) {
        jobs[index] = &all[index];
    }
    qsort(jobs, job_count, sizeof(*jobs), longer);
    run(threads);
    if (!failed) {
        print(all);
    }
    if (fflush(stdout) != 0) {
        fail("standard output: %s", strerror(errno));
    }
    free(jobs);
    free(all);
    return failed ? 1 : 0;
}
