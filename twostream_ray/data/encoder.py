"""The H.264 encoder of stored clips: x264 parameters that give the same bytes on every x86 processor."""

X264_PARAMS = "cpu-independent=1"
"""Left to itself x264 chooses other algorithms on other processors, and its AVX-512 code for the macroblock tree reads
memory that nobody has written: the same frames then give other bytes on another machine, or in another order. It costs
nothing that can be measured (0.18, 0.42 and 1.4 ms a frame of 86x64, 170x128 and 342x256 px, before and after)."""
