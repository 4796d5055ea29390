# nibble_stage(<name> [DEPS <targets>]): the OBJECT library nibble_<name> of src/<name>/.
#
# Takes every .cc below the folder except *_test.cc and *_fuzz.cc; files below a cuda/ folder (and
# .cu files) only where CUDA is on. A folder without sources is no error. Which headers a stage may
# include is held by tools/check_layers.py.

# One ISA per file, said by the end of its name; the flags of a longer name include the shorter's.
set(nibble_isa_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(nibble_isa_avxvnni ${nibble_isa_avx2} -mavxvnni)
set(nibble_isa_avx512_vnni -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi
                           -mfma -mf16c)
set(nibble_isa_avx512_bf16 ${nibble_isa_avx512_vnni} -mavx512bf16)
set(nibble_isa_names_x86_64 avx2 avxvnni avx512_vnni avx512_bf16)
set(nibble_isa_neon "") # every AArch64 has it
set(nibble_isa_neon_dotprod -march=armv8.2-a+dotprod)
set(nibble_isa_neon_i8mm -march=armv8.2-a+dotprod+i8mm)
set(nibble_isa_neon_bf16 -march=armv8.2-a+bf16)
set(nibble_isa_names_aarch64 neon neon_dotprod neon_i8mm neon_bf16)

# Sets the compile flags of ISA files, and drops them from the list on other CPUs.
function(nibble_isa_sources sources_variable)
  foreach(isa IN LISTS nibble_isa_names_x86_64 nibble_isa_names_aarch64)
    set(files ${${sources_variable}})
    list(FILTER files INCLUDE REGEX "_${isa}\\.cc$")
    if(NOT files)
      continue()
    endif()
    if((NIBBLE_X86_64 AND isa IN_LIST nibble_isa_names_x86_64)
       OR (NIBBLE_AARCH64 AND isa IN_LIST nibble_isa_names_aarch64))
      set(flags ${nibble_isa_${isa}})
      if(NOT nibble_sanitize_flags)
        list(APPEND flags -O3) # also in Debug: an unoptimised kernel tests another program
      endif()
      set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${flags}")
    else()
      list(REMOVE_ITEM ${sources_variable} ${files})
    endif()
  endforeach()
  set(${sources_variable} ${${sources_variable}} PARENT_SCOPE)
endfunction()

function(nibble_stage name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "DEPS")
  set(folder ${PROJECT_SOURCE_DIR}/src/${name})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${folder}/*.cc)
  list(FILTER sources EXCLUDE REGEX "_(test|fuzz)\\.cc$")
  if(NIBBLE_HAVE_CUDA)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${folder}/*.cu)
    list(APPEND sources ${cuda_sources})
  else()
    list(FILTER sources EXCLUDE REGEX "/cuda/")
  endif()
  nibble_isa_sources(sources)
  if(NOT sources)
    message(STATUS "stage ${name}: no sources")
    return()
  endif()

  set(target nibble_${name})
  add_library(${target} OBJECT ${sources})
  nibble_compile_options(${target})
  nibble_cuda_options(${target})
  nibble_stage_includes(${target})
  target_link_libraries(${target} PRIVATE ${arg_DEPS} Threads::Threads)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  if(NIBBLE_NATIVE AND NOT name STREQUAL "kernels")
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  endif()
  set_property(GLOBAL APPEND PROPERTY NIBBLE_STAGES ${name})
endfunction()

# What library code and tests of stages see: public headers, the stages' own, and the defines.
function(nibble_stage_includes target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include
                                               ${PROJECT_SOURCE_DIR}/src)
  target_compile_definitions(${target} PRIVATE NIBBLE_VERSION="${PROJECT_VERSION}")
  if(NIBBLE_X86_64)
    target_compile_definitions(${target} PRIVATE NIBBLE_HAVE_X86_ISA=1)
  endif()
  if(NIBBLE_AARCH64)
    target_compile_definitions(${target} PRIVATE NIBBLE_HAVE_NEON_ISA=1)
  endif()
  # NIBBLE_ASSUME checks in Debug and under sanitizers.
  if(nibble_sanitize_flags)
    target_compile_definitions(${target} PRIVATE NIBBLE_CHECKED=1)
  else()
    target_compile_definitions(${target} PRIVATE $<$<CONFIG:Debug>:NIBBLE_CHECKED=1>)
  endif()
endfunction()
