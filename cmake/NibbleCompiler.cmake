# Language level, warnings and sanitizers of our own targets: nibble_compile_options(<target>).

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS OFF)
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  find_program(NIBBLE_CCACHE ccache)
  mark_as_advanced(NIBBLE_CCACHE)
  if(NIBBLE_CCACHE)
    foreach(lang C CXX CUDA)
      if(NOT DEFINED CMAKE_${lang}_COMPILER_LAUNCHER)
        set(CMAKE_${lang}_COMPILER_LAUNCHER ${NIBBLE_CCACHE})
      endif()
    endforeach()
  endif()
endif()

# Warnings are errors with the compilers that CI runs; another one may warn about something else.
set(werror OFF)
if(NIBBLE_DEV AND "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" MATCHES
                  "^(GNU 12|Clang 16)\\.")
  set(werror ON)
endif()
option(NIBBLE_WERROR "Treat warnings as errors" ${werror})

set(NIBBLE_X86_64 OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(NIBBLE_X86_64 ON)
endif()
set(NIBBLE_AARCH64 OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(NIBBLE_AARCH64 ON)
endif()

# No contraction anywhere: a multiply and an add round twice on every CPU, so bits do not depend on
# the compiler. Kernels that want FMA say so with an intrinsic.
set(nibble_cxx_flags -ffp-contract=off)
if(NIBBLE_DEV)
  list(APPEND nibble_cxx_flags -Wall -Wextra -Wconversion -Wshadow -Werror=switch)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND nibble_cxx_flags -Wno-restrict) # false alarms in std::string, GCC bug 105651
endif()
if(NIBBLE_WERROR)
  list(APPEND nibble_cxx_flags -Werror)
endif()

set(nibble_sanitize_flags "")
if(NIBBLE_SANITIZE)
  set(nibble_sanitize_flags -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # False alarms inside std::regex once its code is instrumented; plain builds keep the warning.
    list(APPEND nibble_sanitize_flags -Wno-maybe-uninitialized)
  endif()
  if(NIBBLE_SANITIZE MATCHES "undefined")
    list(APPEND nibble_sanitize_flags -fno-sanitize-recover=undefined)
  endif()
elseif(NIBBLE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "NIBBLE_FUZZ needs clang; the compiler is ${CMAKE_CXX_COMPILER_ID}")
  endif()
  set(nibble_sanitize_flags -fsanitize=fuzzer-no-link,address,undefined
                            -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
endif()
if(NIBBLE_COVERAGE)
  list(APPEND nibble_sanitize_flags --coverage)
endif()

function(nibble_compile_options target)
  target_compile_options(
    ${target} PRIVATE "$<$<COMPILE_LANGUAGE:C,CXX>:${nibble_cxx_flags};${nibble_sanitize_flags}>")
  target_link_options(${target} PRIVATE ${nibble_sanitize_flags})
  set_target_properties(
    ${target} PROPERTIES C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden
                         CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endfunction()
