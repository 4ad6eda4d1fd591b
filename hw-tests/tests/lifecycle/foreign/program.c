/* Loads the library of the second argument, if there is one, for all to see, then the module of the first; lists slots
 * and tokens, and says how often its own functions with PC/SC's names were called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST 16

static void *load(const char *path, int how)
{
    void *library = dlopen(path, how);
    if (!library) {
        puts(dlerror());
        exit(2);
    }
    return library;
}

static void ok(const char *what, unsigned long code)
{
    if (code) {
        printf("%s: %#lx\n", what, code);
        exit(3);
    }
}

int main(int count, char **arguments)
{
    if (count > 2)
        load(arguments[2], RTLD_NOW | RTLD_GLOBAL);
    int *foreign_calls = dlsym(RTLD_DEFAULT, "foreign_calls");
    if (!foreign_calls || !dlsym(RTLD_DEFAULT, "SCardEstablishContext"))
        return 4;
    void *module = load(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    unsigned long (*initialize)(void *) = dlsym(module, "C_Initialize");
    unsigned long (*list)(unsigned char, unsigned long *, unsigned long *) = dlsym(module, "C_GetSlotList");
    unsigned long (*token)(unsigned long, void *) = dlsym(module, "C_GetTokenInfo");
    unsigned long (*finalize)(void *) = dlsym(module, "C_Finalize");
    unsigned long slots[MOST], found = MOST;
    char info[1024];
    ok("C_Initialize", initialize(NULL));
    ok("C_GetSlotList", list(1, slots, &found));
    for (unsigned long n = 0; n < found; n++)
        ok("C_GetTokenInfo", token(slots[n], info));
    ok("C_Finalize", finalize(NULL));
    printf("tokens %lu, foreign calls %d\n", found, *foreign_calls);
    return 0;
}
