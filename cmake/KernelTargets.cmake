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

# GCC 12's own AVX-512 header trips -Wmaybe-uninitialized and -Wuninitialized in every intrinsic.
set(VS_KERNEL_WARNINGS -Wno-psabi
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)

# Checks make a network that sorts thirty rows a function of a hundred thousand instructions, which
# -O1 takes twice as long to compile as -Og and no test notices.
set(VS_KERNEL_OPTIMIZATION $<IF:$<BOOL:${VEILSUM_SANITIZE}>,-Og,-O3>)

set(VS_KERNEL_OBJECTS)
set(_checks)
function(add_kernels target source flags)
  add_library(${target} OBJECT ${source})
  target_include_directories(${target} PRIVATE csrc)
  target_compile_options(${target} PRIVATE
    ${flags} ${VS_EXACT} ${VS_KERNEL_OPTIMIZATION} -fno-exceptions ${VS_KERNEL_WARNINGS})
  set(stamp ${CMAKE_CURRENT_BINARY_DIR}/${target}_symbols.stamp)
  add_custom_command(OUTPUT ${stamp}
    COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DOBJECT=$<TARGET_OBJECTS:${target}>
            -DSTAMP=${stamp} -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/CheckKernelSymbols.cmake
    DEPENDS ${target} $<TARGET_OBJECTS:${target}>
            ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/CheckKernelSymbols.cmake
    COMMENT "Checking the symbols of ${target}" VERBATIM)
  set(VS_KERNEL_OBJECTS ${VS_KERNEL_OBJECTS} $<TARGET_OBJECTS:${target}> PARENT_SCOPE)
  set(_checks ${_checks} ${stamp} PARENT_SCOPE)
endfunction()

foreach(kind IN LISTS VS_KERNELS)
  add_kernels(veilsum_kernels_${kind} csrc/kernels/kernels_${kind}.cpp "${VS_FLAGS_${kind}}")
endforeach()
# Apart, because their networks take longest to compile and change least.
foreach(isa IN ITEMS base v2 v3 v4)
  if(isa IN_LIST VS_KERNELS)
    add_kernels(veilsum_rule_kernels_${isa} csrc/kernels/rule_kernels_${isa}.cpp
                "${VS_FLAGS_${isa}}")
    if(VEILSUM_FUZZ)  # no target reaches them, and they take longer than all else together
      target_compile_options(veilsum_rule_kernels_${isa} PRIVATE -fno-sanitize=all)
    endif()
  endif()
endforeach()
add_custom_target(veilsum_check_kernels ALL DEPENDS ${_checks})
