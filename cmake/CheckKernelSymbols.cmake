# Run as a script on one kernel object: cmake -DNM= -DOBJECT= -DSTAMP= -P.
# The object must export its kernel table and nothing else, and call no C++ function: a
# second, weak symbol could replace the copy another object was compiled with, and the
# base level would run instructions its CPU does not have.
execute_process(COMMAND ${NM} ${OBJECT} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "\n" ";" lines "${symbols}")
set(exported)
set(called)
foreach(line IN LISTS lines)
  # Address sanitizer adds a marker symbol of its own per exported variable, fuzz targets
  # the bounds of their counters.
  if(line MATCHES "__odr_asan|__(start|stop)___sancov")
    continue()
  endif()
  if(line MATCHES " U (_Z.*)$")
    list(APPEND called ${CMAKE_MATCH_1})
  elseif(line MATCHES " [A-TV-Zuvw] (.*)$")
    list(APPEND exported ${CMAKE_MATCH_1})
  endif()
endforeach()

list(LENGTH exported count)
if(NOT count EQUAL 1 OR NOT exported MATCHES "Kernels")
  message(FATAL_ERROR "${OBJECT} must export its kernel table alone, but exports: ${exported}")
endif()
if(called)
  message(FATAL_ERROR "${OBJECT} must not call C++ functions, but calls: ${called}")
endif()
file(TOUCH ${STAMP})
