#pragma once

#include <map>
#include <string>

namespace pvt_kernels {

// Instruction sets that both this CPU and its operating system support, by the names that Linux
// gives them in /proc/cpuinfo. The keys depend on the CPU's architecture alone; an architecture
// without code paths of its own has none.
std::map<std::string, bool> cpu_features();

// Asks the operating system for AMX's tiles, for all threads of the process, present and to come.
// False where it refuses, or is one that is not known to grant them.
bool request_amx();

}  // namespace pvt_kernels
