# The kernels of cuda/ compiled for the CPU, and the emulated devices that they run on.
add_library(veilsum_emulated OBJECT tests/emu/runtime.cpp)
foreach(source IN LISTS VS_KERNEL_SOURCES)
  get_filename_component(name ${source} NAME_WE)
  # A file of its own, because the build knows `.cu` as another language.
  set(copy ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
  file(GENERATE OUTPUT ${copy} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
  target_sources(veilsum_emulated PRIVATE ${copy})
endforeach()
target_compile_definitions(veilsum_emulated PRIVATE VS_EMU=1)
target_include_directories(veilsum_emulated PRIVATE csrc cuda tests/emu)
target_compile_options(veilsum_emulated PRIVATE ${VS_EXACT})

add_library(veilsum_emulator OBJECT tests/emu/emulator.cpp)
target_include_directories(veilsum_emulator PRIVATE csrc tests/emu)
if("thread" IN_LIST VEILSUM_SANITIZE)
  # See the file: what it does between fibers must not count as order.
  target_compile_definitions(veilsum_emulator PRIVATE VS_EMU_TSAN=1)
  target_compile_options(veilsum_emulator PRIVATE -fno-sanitize=thread)
endif()

target_compile_definitions(veilsum_core PRIVATE VEILSUM_WITH_EMULATOR=1)
target_sources(veilsum_core PRIVATE $<TARGET_OBJECTS:veilsum_emulated>
                                    $<TARGET_OBJECTS:veilsum_emulator>)
