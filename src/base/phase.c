/* Names of the phases, see phase.h. */
#include "phase.h"

#define PHASE_NAME(id, name) [PHASE_##id] = name,
const char *const phase_names[PHASE_COUNT] = {PHASES(PHASE_NAME)};
