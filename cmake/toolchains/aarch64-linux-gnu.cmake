# Cross-compiles for ARM (AArch64, Linux) with Debian's or Ubuntu's packages, and runs what was built
# under qemu-user; `tools/setup aarch64` installs both. The environment variable QEMU_CPU chooses the
# emulated processor: max (the default) has every instruction set, cortex-a76 and neoverse-n1 have
# dot products but no matrix products, cortex-a53 has neither.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Libraries of the build machine are for another CPU. Headers serve both, and GoogleTest is built
# from its sources (cmake/NibbleDependencies.cmake).
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
