# One object library per instruction-set level, all from the same source.
# Flags are explicit -m switches: every compiler we build with reads them alike.
set(VS_FLAGS_base)
set(VS_FLAGS_v2 -mssse3 -msse4.1 -msse4.2 -mpopcnt -mcx16)
set(VS_FLAGS_v3 ${VS_FLAGS_v2} -mavx -mavx2 -mfma -mbmi -mbmi2 -mf16c -mlzcnt -mmovbe)
set(VS_FLAGS_v4 ${VS_FLAGS_v3} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl
    -mprefer-vector-width=512)

set(VS_ISAS base)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND VS_ISAS v2 v3 v4)
endif()

# GCC 12's own AVX-512 header trips -Wmaybe-uninitialized in every intrinsic.
set(VS_KERNEL_WARNINGS -Wno-psabi $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)

set(VS_KERNEL_OBJECTS)
set(_checks)
foreach(isa IN LISTS VS_ISAS)
  add_library(veilsum_kernels_${isa} OBJECT csrc/kernels/kernels_${isa}.cpp)
  target_include_directories(veilsum_kernels_${isa} PRIVATE csrc)
  target_compile_options(veilsum_kernels_${isa} PRIVATE
    ${VS_FLAGS_${isa}} ${VS_EXACT} -O3 -fno-exceptions ${VS_KERNEL_WARNINGS})
  list(APPEND VS_KERNEL_OBJECTS $<TARGET_OBJECTS:veilsum_kernels_${isa}>)

  set(_stamp ${CMAKE_CURRENT_BINARY_DIR}/kernel_symbols_${isa}.stamp)
  add_custom_command(OUTPUT ${_stamp}
    COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DOBJECT=$<TARGET_OBJECTS:veilsum_kernels_${isa}>
            -DSTAMP=${_stamp} -P ${CMAKE_CURRENT_LIST_DIR}/CheckKernelSymbols.cmake
    DEPENDS veilsum_kernels_${isa} $<TARGET_OBJECTS:veilsum_kernels_${isa}>
            ${CMAKE_CURRENT_LIST_DIR}/CheckKernelSymbols.cmake
    COMMENT "Checking the symbols of kernel level ${isa}" VERBATIM)
  list(APPEND _checks ${_stamp})
endforeach()
add_custom_target(veilsum_check_kernels ALL DEPENDS ${_checks})
