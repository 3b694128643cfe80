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

set(VS_KERNEL_OBJECTS)
foreach(isa IN LISTS VS_ISAS)
  add_library(veilsum_kernels_${isa} OBJECT csrc/kernels/kernels_${isa}.cpp)
  target_include_directories(veilsum_kernels_${isa} PRIVATE csrc)
  target_compile_options(veilsum_kernels_${isa} PRIVATE
    ${VS_FLAGS_${isa}} ${VS_EXACT} -O3 -Wno-psabi)
  list(APPEND VS_KERNEL_OBJECTS $<TARGET_OBJECTS:veilsum_kernels_${isa}>)
endforeach()
