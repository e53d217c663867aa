/* Included by Cython's dead code only; see Python.h. */
