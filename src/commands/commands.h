/* The subcommands of the program. Each reads its own flags (argv[0] is the command's name), prints for a
 * person, and returns the exit status: 0, 1 for a failure, 2 for wrong usage. */
#ifndef LATENTD_COMMANDS_H
#define LATENTD_COMMANDS_H

int command_generate(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_kernels(int argc, char **argv);
/* Becomes latentd-pull (src/pull); returns only when that cannot be. */
int command_pull(int argc, char **argv);
int command_openapi(int argc, char **argv);

#endif
