/*
 * Just enough of the name "Python.h" for the C that Cython writes to compile.
 *
 * No function of our native programs touches a Python object, so the linker drops all of
 * Cython's module set-up; nothing declared here is ever linked or run.  Compiling against this
 * file instead of CPython's headers is what lets a build need neither python3-dev nor headers
 * of the target's architecture.  That nothing was missed is checked after linking: the binary
 * must hold no symbol that begins with "Py".
 */
#ifndef PYSHIM_PYTHON_H
#define PYSHIM_PYTHON_H
#define Py_PYTHON_H
#define CYTHON_LIMITED_API 1
#define PY_VERSION_HEX 0x030C0000
#define Py_LIMITED_API 0x030C0000
#define PY_MAJOR_VERSION 3
#define PY_MINOR_VERSION 12
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <limits.h>
#include <stdio.h>
#define PyMODINIT_FUNC PyObject *
typedef ptrdiff_t Py_ssize_t;
typedef Py_ssize_t Py_hash_t;
typedef struct _object { Py_ssize_t ob_refcnt; } PyObject;
typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef int64_t PY_INT64_T;
typedef struct _typeobject PyTypeObject;
typedef struct { const char *ml_name; PyCFunction ml_meth; int ml_flags; const char *ml_doc; } PyMethodDef;
typedef struct { int slot; void *value; } PyModuleDef_Slot;
typedef struct PyModuleDef { int m_base; const char *m_name; const char *m_doc; Py_ssize_t m_size;
  PyMethodDef *m_methods; PyModuleDef_Slot *m_slots; void *m_traverse; void *m_clear; void *m_free; } PyModuleDef;
#define PyModuleDef_HEAD_INIT 0
#define Py_mod_create 1
#define Py_mod_exec 2
#define Py_None ((PyObject *)0)
#define PY_VECTORCALL_ARGUMENTS_OFFSET 0
extern PyObject *PyExc_AttributeError, *PyExc_ImportError, *PyExc_RuntimeError, *PyExc_TypeError, *PyExc_SystemError, *PyExc_OverflowError, *PyExc_ValueError, *PyExc_NameError, *PyExc_DeprecationWarning;
#define PY_LONG_LONG long long
#define PY_SSIZE_T_MAX PTRDIFF_MAX
#define PY_SSIZE_T_MIN PTRDIFF_MIN
#define Py_True ((PyObject *)0)
#define Py_False ((PyObject *)0)
#define Py_LT 0
#define Py_EQ 2
#define Py_NE 3
#define Py_eval_input 258
#define Py_file_input 257
#define Py_Version PY_VERSION_HEX
#define METH_NOARGS 4
#define METH_O 8
#define METH_VARARGS 1
#define METH_KEYWORDS 2
#define METH_FASTCALL 128
typedef int PySendResult;
extern PyTypeObject PyLong_Type, PyUnicode_Type, PyBytes_Type, PyFloat_Type, PyDict_Type, PyTuple_Type, PyList_Type, PyType_Type, PyBaseObject_Type, PyModule_Type, PyCFunction_Type;
#endif
