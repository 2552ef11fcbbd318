/* latentd kernels: who serves each op on this machine; on a GPU also which kernel won at each shape so far.
 */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "session.h"
#include "thread_pool.h"

int command_kernels(int argc, char **argv)
{
    struct session s;
    const char *isa = NULL, *precision = NULL;
    for (int i = 1; i < argc; i++) {
        const char **value = strcmp(argv[i], "--isa") == 0         ? &isa
                             : strcmp(argv[i], "--precision") == 0 ? &precision
                                                                   : NULL;
        if (!value) {
            fputs("usage: latentd kernels [--isa TIER] [--precision int8|bf16|fp32]\n",
                  strcmp(argv[i], "--help") == 0 ? stdout : stderr);
            return strcmp(argv[i], "--help") == 0 ? 0 : 2;
        }
        if (!(*value = flag_value(argc, argv, &i)))
            return 2;
    }
    int status = session_open(&s, NULL, isa, precision, SESSION_BACKEND);
    if (status)
        return status;
    static const char *const types[] = {[DTYPE_F32] = "fp32", [DTYPE_F16] = "fp16", [DTYPE_BF16] = "bf16"};
    printf("backend %s, tier %s, activations %s%s, %d threads\n", s.be->name, s.be->tier, types[s.be->dtype],
           s.be->int8 ? ", matrices int8 where the network bears it" : "", pool_threads(s.be->pool));
    for (int i = 0; i < OP_COUNT; i++)
        printf("%-20s %s\n", op_names[i], s.be->served_by[i] ? s.be->served_by[i] : "nobody");
    if (s.be->print_choices)
        s.be->print_choices(s.be, stdout);
    session_close(&s);
    return 0;
}
