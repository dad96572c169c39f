/* Says as whom it runs: what setuid bits and file capabilities in an image gave it. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    printf("uid %d euid %d egid %d", getuid(), geteuid(), getegid());
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff:\t", 8))
            printf(" effective %.16s", line + 8);
    printf("\n");
    return 0;
}
