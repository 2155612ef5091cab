/* A stand-in for libnvidia-ml.so.1 at its C ABI, so that the real binding runs in tests.

   What it answers stands in the file that FAKE_NVML names, read anew at each call; lines are:
     gpus COUNT
     name GPU TEXT
     memory GPU TOTAL USED
     utilization GPU PERCENT
     mig GPU CURRENT
     compute GPU PID USED        (USED "-" is NVML_VALUE_NOT_AVAILABLE)
     graphics GPU PID USED
     error FUNCTION GPU CODE     (GPU -1 for functions without one)
     hang FUNCTION               (until the line is gone)
   Written from the declarations of nvml.h that the binding mirrors. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define UNKNOWN 999

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_t;

static int started = 0;
/* A handle is the address of its entry, as opaque to the caller as NVML's own. */
static char handles[16];

static FILE *state(void) {
    const char *path = getenv("FAKE_NVML");
    return path ? fopen(path, "r") : NULL;
}

/* The text behind "KEY GPU " of the nth such line; 1 where there is one. */
static int find(const char *key, int gpu, int nth, char *text, size_t size) {
    FILE *file = state();
    char line[512], word[64];
    int number, used, found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%63s %d %n", word, &number, &used) != 2) continue;
        if (strcmp(word, key) || number != gpu || nth-- > 0) continue;
        snprintf(text, size, "%s", line + used);
        text[strcspn(text, "\n")] = 0;
        found = 1;
    }
    if (file) fclose(file);
    return found;
}

static int hangs(const char *function) {
    FILE *file = state();
    char line[512], name[128];
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file))
        found = sscanf(line, "hang %127s", name) == 1 && !strcmp(name, function);
    if (file) fclose(file);
    return found;
}

/* What comes before each answer: hanging, errors, a library that was not started. */
static int begin(const char *function, int gpu) {
    FILE *file;
    char line[512], name[128];
    int number, code, found = SUCCESS;
    while (hangs(function)) usleep(20000);
    file = state();
    while (file && found == SUCCESS && fgets(line, sizeof line, file))
        if (sscanf(line, "error %127s %d %d", name, &number, &code) == 3 && !strcmp(name, function)
            && number == gpu)
            found = code;
    if (file) fclose(file);
    if (found != SUCCESS) return found;
    return started > 0 || !strcmp(function, "nvmlInitWithFlags") ? SUCCESS : UNINITIALIZED;
}

static int index_of(void *handle) { return (int)((char *)handle - handles); }

int nvmlInitWithFlags(unsigned int flags) {
    int code = begin("nvmlInitWithFlags", -1);
    (void)flags;
    if (code == SUCCESS) started++;
    return code;
}

int nvmlShutdown(void) {
    if (started == 0) return UNINITIALIZED;
    started--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stand-in";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    FILE *file;
    char line[512];
    int code = begin("nvmlDeviceGetCount", -1);
    if (code != SUCCESS) return code;
    *count = 0;
    file = state();
    while (file && fgets(line, sizeof line, file)) sscanf(line, "gpus %u", count);
    if (file) fclose(file);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int gpu, void **handle) {
    int code = begin("nvmlDeviceGetHandleByIndex", (int)gpu);
    if (gpu >= sizeof handles) return INVALID_ARGUMENT;
    *handle = handles + gpu;
    return code;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    char text[256];
    int gpu = index_of(handle), code = begin("nvmlDeviceGetName", gpu);
    if (code != SUCCESS) return code;
    if (!find("name", gpu, 0, text, sizeof text)) return UNKNOWN;
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    memcpy(name, text, strlen(text) + 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    char text[256];
    int gpu = index_of(handle), code = begin("nvmlDeviceGetMemoryInfo", gpu);
    if (code != SUCCESS) return code;
    if (!find("memory", gpu, 0, text, sizeof text)) return NOT_SUPPORTED;
    if (sscanf(text, "%llu %llu", &memory->total, &memory->used) != 2) return UNKNOWN;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *utilization) {
    char text[256];
    int gpu = index_of(handle), code = begin("nvmlDeviceGetUtilizationRates", gpu);
    if (code != SUCCESS) return code;
    if (!find("utilization", gpu, 0, text, sizeof text)) return NOT_SUPPORTED;
    utilization->memory = 0;
    return sscanf(text, "%u", &utilization->gpu) == 1 ? SUCCESS : UNKNOWN;
}

int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    char text[256];
    int gpu = index_of(handle), code = begin("nvmlDeviceGetMigMode", gpu);
    if (code != SUCCESS) return code;
    if (!find("mig", gpu, 0, text, sizeof text)) return NOT_SUPPORTED;
    *pending = *current = (unsigned int)atoi(text);
    return SUCCESS;
}

static int processes(const char *function, const char *key, void *handle, unsigned int *count,
                     process_t *into) {
    char text[256], used[64];
    int gpu = index_of(handle), code = begin(function, gpu);
    unsigned int number = 0, room = *count;
    if (code != SUCCESS) return code;
    while (find(key, gpu, (int)number, text, sizeof text)) {
        if (into && number < room) {
            if (sscanf(text, "%u %63s", &into[number].pid, used) != 2) return UNKNOWN;
            into[number].used = strcmp(used, "-") ? strtoull(used, NULL, 10) : ~0ULL;
            into[number].gpu_instance = into[number].compute_instance = ~0U;
        }
        number++;
    }
    *count = number;
    return number == 0 || (into && number <= room) ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *into) {
    return processes("nvmlDeviceGetComputeRunningProcesses", "compute", handle, count, into);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned int *count, process_t *into) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses", "graphics", handle, count, into);
}
