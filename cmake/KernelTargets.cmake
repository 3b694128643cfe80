# One object library per instruction-set level, all from the same source, and one per kind of
# instruction that no level promises. Flags are explicit -m switches: every compiler we build
# with reads them alike.
set(VS_FLAGS_base)
set(VS_FLAGS_v2 -mssse3 -msse4.1 -msse4.2 -mpopcnt -mcx16)
set(VS_FLAGS_v3 ${VS_FLAGS_v2} -mavx -mavx2 -mfma -mbmi -mbmi2 -mf16c -mlzcnt -mmovbe)
set(VS_FLAGS_v4 ${VS_FLAGS_v3} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl
    -mprefer-vector-width=512)
set(VS_FLAGS_aesni ${VS_FLAGS_v2} -maes)
set(VS_FLAGS_vaes256 ${VS_FLAGS_v3} -maes -mvaes)
set(VS_FLAGS_vaes512 ${VS_FLAGS_v4} -maes -mvaes)

set(VS_KERNELS base)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND VS_KERNELS v2 v3 v4 aesni vaes256 vaes512)
endif()

# GCC 12's own AVX-512 header trips -Wmaybe-uninitialized in every intrinsic.
set(VS_KERNEL_WARNINGS -Wno-psabi $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
if(VEILSUM_SANITIZE)  # which makes it -Wuninitialized
  list(APPEND VS_KERNEL_WARNINGS $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)
endif()

set(VS_KERNEL_OBJECTS)
set(_checks)
foreach(kind IN LISTS VS_KERNELS)
  add_library(veilsum_kernels_${kind} OBJECT csrc/kernels/kernels_${kind}.cpp)
  target_include_directories(veilsum_kernels_${kind} PRIVATE csrc)
  target_compile_options(veilsum_kernels_${kind} PRIVATE
    ${VS_FLAGS_${kind}} ${VS_EXACT} -O3 -fno-exceptions ${VS_KERNEL_WARNINGS})
  list(APPEND VS_KERNEL_OBJECTS $<TARGET_OBJECTS:veilsum_kernels_${kind}>)

  set(_stamp ${CMAKE_CURRENT_BINARY_DIR}/kernel_symbols_${kind}.stamp)
  add_custom_command(OUTPUT ${_stamp}
    COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DOBJECT=$<TARGET_OBJECTS:veilsum_kernels_${kind}>
            -DSTAMP=${_stamp} -P ${CMAKE_CURRENT_LIST_DIR}/CheckKernelSymbols.cmake
    DEPENDS veilsum_kernels_${kind} $<TARGET_OBJECTS:veilsum_kernels_${kind}>
            ${CMAKE_CURRENT_LIST_DIR}/CheckKernelSymbols.cmake
    COMMENT "Checking the symbols of kernels ${kind}" VERBATIM)
  list(APPEND _checks ${_stamp})
endforeach()
add_custom_target(veilsum_check_kernels ALL DEPENDS ${_checks})
