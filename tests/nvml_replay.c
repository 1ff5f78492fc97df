/* A libnvidia-ml.so.1 that answers from a script: what a driver said, function by function and call by call.

   NVML_REPLAY names a text file. A line is FUNCTION FROM ERROR [VALUE...]: from the FROM-th call of that function on
   (counted from 1) it returns the code ERROR and the values. The last line that fits wins. A function without a line
   is NOT_SUPPORTED, which is what boards say of what they do not measure. A negative code is a signal: a driver that
   crashes. Every call reads the file anew.

   Types and codes as in the public header nvml.h. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, UNKNOWN = 999 };

typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long bytes; unsigned int gpu_instance, compute_instance; } process_t;

static struct { char name[64]; int calls; } counted[64];

static int count(const char *function)
{
    for (int i = 0; i < 64; i++) {
        if (!counted[i].name[0])
            strncpy(counted[i].name, function, 63);
        if (!strcmp(counted[i].name, function))
            return ++counted[i].calls;
    }
    abort();
}

/* Returns the code for this call and leaves the rest of the line in `values`. */
static int answer(const char *function, char *values)
{
    char line[512], name[64];
    int from, error, used, calls = count(function), found = NOT_SUPPORTED;
    const char *path = getenv("NVML_REPLAY");
    FILE *script = path ? fopen(path, "r") : NULL;
    if (!script)
        return UNKNOWN;
    values[0] = 0;
    while (fgets(line, sizeof line, script))
        if (sscanf(line, "%63s %d %d%n", name, &from, &error, &used) == 3 && !strcmp(name, function) && calls >= from) {
            found = error;
            strcpy(values, line + used);
        }
    fclose(script);
    if (found < 0)
        raise(-found);
    return found;
}

static int numbers(const char *function, unsigned long long *into, int n)
{
    char values[512], *at = values;
    int error = answer(function, values);
    for (int i = 0; i < n; i++)
        into[i] = strtoull(at, &at, 10);
    return error;
}

static int text(const char *function, char *into, unsigned int length)
{
    char values[512], *at = values;
    int error = answer(function, values);
    at += strspn(at, " ");
    at[strcspn(at, "\n")] = 0;
    snprintf(into, length, "%s", at);
    return error;
}

#define ONE_NUMBER(function, type) \
    int function(void *device, type *value) \
    { \
        unsigned long long number; \
        int error = numbers(#function, &number, 1); \
        (void)device; \
        *value = (type)number; \
        return error; \
    }

#define TWO_NUMBERS(function) \
    int function(void *device, unsigned int *first, unsigned int *second) \
    { \
        unsigned long long number[2]; \
        int error = numbers(#function, number, 2); \
        (void)device; \
        *first = (unsigned int)number[0]; \
        *second = (unsigned int)number[1]; \
        return error; \
    }

ONE_NUMBER(nvmlDeviceGetPowerUsage, unsigned int)
ONE_NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long)
ONE_NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int)
ONE_NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int)
ONE_NUMBER(nvmlDeviceGetPersistenceMode, unsigned int)
ONE_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long)
ONE_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long)
TWO_NUMBERS(nvmlDeviceGetEccMode)
TWO_NUMBERS(nvmlDeviceGetMigMode)

int nvmlInitWithFlags(unsigned int flags) { char values[512]; (void)flags; return answer("nvmlInitWithFlags", values); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "replayed error"; }
int nvmlSystemGetDriverVersion(char *into, unsigned int n) { return text("nvmlSystemGetDriverVersion", into, n); }
int nvmlDeviceGetName(void *device, char *into, unsigned int n) { (void)device; return text("nvmlDeviceGetName", into, n); }
int nvmlDeviceGetCount_v2(unsigned int *value) { unsigned long long number; int error = numbers("nvmlDeviceGetCount_v2", &number, 1); *value = (unsigned int)number; return error; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { char values[512]; *device = &counted[index]; return answer("nvmlDeviceGetHandleByIndex_v2", values); }

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *value)
{
    unsigned long long number[2];
    int error = numbers("nvmlDeviceGetUtilizationRates", number, 2);
    (void)device;
    value->gpu = (unsigned int)number[0];
    value->memory = (unsigned int)number[1];
    return error;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *value)
{
    unsigned long long number[3];
    int error = numbers("nvmlDeviceGetMemoryInfo", number, 3);
    (void)device;
    value->total = number[0];
    value->free = number[1];
    value->used = number[2];
    return error;
}

/* Values: graphics, SM and memory clock. */
int nvmlDeviceGetClockInfo(void *device, unsigned int which, unsigned int *value)
{
    unsigned long long number[3];
    int error = numbers("nvmlDeviceGetClockInfo", number, 3);
    (void)device;
    *value = (unsigned int)number[which < 3 ? which : 0];
    return error;
}

int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *value)
{
    unsigned long long number;
    int error = numbers("nvmlDeviceGetTemperature", &number, 1);
    (void)device, (void)sensor;
    *value = (unsigned int)number;
    return error;
}

/* Values: process ids. The first call of a pair asks for the number, as pynvml does; only the second one counts. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *n, process_t *into)
{
    char values[512], *at = values, *next;
    const char *function = "nvmlDeviceGetComputeRunningProcesses_v3";
    int error = answer(function, values);
    unsigned int found = 0, room = *n;
    (void)device;
    if (error != SUCCESS)
        return error;
    for (unsigned long long pid; pid = strtoull(at, &next, 10), next != at; at = next, found++)
        if (into && found < room)
            into[found] = (process_t){(unsigned int)pid, 1 << 20, ~0u, ~0u};
    *n = found;
    if (found <= room)
        return SUCCESS;
    for (int i = 0; i < 64; i++)
        if (!strcmp(counted[i].name, function))
            counted[i].calls--;
    return INSUFFICIENT_SIZE;
}
