# emulate(TARGET SOURCE...): kernel files compiled for the CPU.
function(emulate target)
  add_library(${target} OBJECT)
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    get_filename_component(path ${source} ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
    # A file of its own, because the build knows `.cu` as another language.
    set(copy ${PROJECT_BINARY_DIR}/emulated/${name}.cpp)
    file(GENERATE OUTPUT ${copy} CONTENT "#include \"${path}\"\n")
    target_sources(${target} PRIVATE ${copy})
  endforeach()
  target_compile_definitions(${target} PRIVATE VS_EMU=1)
  target_include_directories(${target} PRIVATE
    ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/cuda ${PROJECT_SOURCE_DIR}/tests/emu)
  target_compile_options(${target} PRIVATE ${VS_EXACT})
endfunction()

# The kernels of cuda/, and the emulated devices that they run on.
emulate(veilsum_emulated ${VS_KERNEL_SOURCES})
target_sources(veilsum_emulated PRIVATE tests/emu/runtime.cpp)

add_library(veilsum_fibers OBJECT tests/emu/emulator.cpp)
target_include_directories(veilsum_fibers PRIVATE csrc tests/emu)
if("thread" IN_LIST VEILSUM_SANITIZE)
  # See the file: what it does between fibers must not count as order.
  target_compile_definitions(veilsum_fibers PRIVATE VS_EMU_TSAN=1)
  target_compile_options(veilsum_fibers PRIVATE -fno-sanitize=thread)
endif()

target_compile_definitions(veilsum_core PRIVATE VEILSUM_WITH_EMULATOR=1)
target_sources(veilsum_core PRIVATE $<TARGET_OBJECTS:veilsum_emulated>
                                    $<TARGET_OBJECTS:veilsum_fibers>)
