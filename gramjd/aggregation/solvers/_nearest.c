/* Nonnegative least squares in the dual: min |b + x A|^2 over x >= 0, a row at a time, whatever the rank of A.

   It starts at y = b, which no x >= 0 has moved, and adds the most violated of `a_j . y >= 0` until none is left; what
   binds is linearly independent at every time, and is kept as an orthogonal factorisation, so half of the digits that
   A A^T loses are not lost. Steps that would make an x negative are cut there, and that row leaves.
   Source: Goldfarb and Idnani, A numerically stable dual method for solving strictly convex quadratic programs (1983). */

#include "_lanes.h"

#define REFINED 3 /* times that the equations of what binds are solved again, for the rounding of the way there */
#define AGAIN 8   /* times that something is found to be violated after that */

typedef struct {
    const double *A, *b; /* [m, r], rows padded with zeros to p = r rounded up to a multiple of LANES */
    double *J, *R;       /* columns: J [r, p] orthogonal, its first k spanning what binds; R [r, p] upper triangular */
    double *y, *d, *z, *v;
    double *x, *s; /* [m] */
    int *binds;    /* the k rows that bind, in the order of R */
    char *skip;    /* [m] rows that bind, or are no more than rounding */
    int m, r, p, k;
} Dual;

INLINE double dot(const double *a, const double *b, int p) {
    const vec *va = (const vec *)a, *vb = (const vec *)b;
    int n = p / LANES, i = 0;
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (; i + 4 <= n; i += 4)
        s0 += va[i] * vb[i], s1 += va[i + 1] * vb[i + 1], s2 += va[i + 2] * vb[i + 2], s3 += va[i + 3] * vb[i + 3];
    for (; i < n; i++) s0 += va[i] * vb[i];
    s0 = (s0 + s1) + (s2 + s3);
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += s0[l];
    return sum;
}

INLINE void add(double *to, double by, const double *a, int p) {
    vec *vt = (vec *)to;
    const vec *va = (const vec *)a;
    for (int i = 0; i < p / LANES; i++) vt[i] += by * va[i];
}

/* y = b + x A. */
INLINE void recompute(Dual *q) {
    memcpy(q->y, q->b, q->p * sizeof(double));
    for (int j = 0; j < q->m; j++)
        if (q->x[j] != 0) add(q->y, q->x[j], q->A + (size_t)j * q->p, q->p);
}

/* d in place: R^-1 d, of k entries. */
INLINE void back(const Dual *q, double *d) {
    for (int c = q->k - 1; c >= 0; c--) {
        const double *R = q->R + (size_t)c * q->p;
        double z = d[c] /= R[c];
        for (int i = 0; i < c; i++) d[i] -= z * R[i];
    }
}

/* The l-th of what binds leaves: rotations of J, and with it of d = J^T a, make R triangular again. */
INLINE void leave(Dual *q, int l) {
    int j = q->binds[l];
    q->x[j] = 0;
    q->skip[j] = 0;
    for (int c = l + 1; c < q->k; c++) {
        double *R = q->R + (size_t)(c - 1) * q->p;
        memcpy(R, q->R + (size_t)c * q->p, (c + 1) * sizeof(double));
        q->binds[c - 1] = q->binds[c];
    }
    q->k--;
    for (int i = l; i < q->k; i++) {
        double *R = q->R + (size_t)i * q->p, h = hypot(R[i], R[i + 1]);
        if (!(h > 0)) continue;
        double cosine = R[i] / h, sine = R[i + 1] / h;
        for (int c = i; c < q->k; c++) {
            double *Rc = q->R + (size_t)c * q->p, up = Rc[i], low = Rc[i + 1];
            Rc[i] = cosine * up + sine * low;
            Rc[i + 1] = cosine * low - sine * up;
        }
        double upper = q->d[i], lower = q->d[i + 1];
        q->d[i] = cosine * upper + sine * lower;
        q->d[i + 1] = cosine * lower - sine * upper;
        vec *Ji = (vec *)(q->J + (size_t)i * q->p), *Jn = (vec *)(q->J + (size_t)(i + 1) * q->p);
        for (int c = 0; c < q->p / LANES; c++) {
            vec up = Ji[c], low = Jn[c];
            Ji[c] = cosine * up + sine * low;
            Jn[c] = cosine * low - sine * up;
        }
    }
}

/* Row j, with d = J^T a_j and z = J_2 d_2 at hand, binds from now on: a reflection of what is still free. */
INLINE void join(Dual *q, int j, double length) {
    int k = q->k, p = q->p;
    double *first = q->J + (size_t)k * p, sign = q->d[k] > 0 ? 1.0 : -1.0;
    double *R = q->R + (size_t)k * p;
    memcpy(R, q->d, k * sizeof(double));
    R[k] = -sign * length;
    memcpy(q->v, q->z, p * sizeof(double));
    add(q->v, sign * length, first, p);
    double half = length * (length + fabs(q->d[k])); /* of the square of the vector that it reflects along */
    for (int c = k; c < q->r; c++)
        add(q->J + (size_t)c * p, -(c == k ? q->d[k] + sign * length : q->d[c]) / half, q->v, p);
    q->binds[q->k++] = j;
    q->skip[j] = 1;
}

/* Let row j in, one partial step after the other. */
INLINE void enter(Dual *q, int j, double dependent) {
    const double *a = q->A + (size_t)j * q->p;
    double square = 0;
    for (int c = 0; c < q->r; c++) q->d[c] = dot(q->J + (size_t)c * q->p, a, q->p);
    memset(q->z, 0, q->p * sizeof(double));
    for (int c = q->k; c < q->r; c++) {
        square += q->d[c] * q->d[c];
        add(q->z, q->d[c], q->J + (size_t)c * q->p, q->p);
    }
    for (;;) {
        double most = INFINITY;
        int l = -1, free = square > dependent * dependent;
        memcpy(q->s, q->d, q->k * sizeof(double)); /* s is not needed until it is computed anew */
        back(q, q->s);
        for (int i = 0; i < q->k; i++)
            if (q->s[i] > 0 && q->x[q->binds[i]] < most * q->s[i]) most = q->x[q->binds[i]] / q->s[i], l = i;
        double step = free ? -dot(a, q->y, q->p) / square : INFINITY;
        if (!(step > 0)) return; /* an earlier part of the way was enough */
        int full = step <= most;
        if (full && !free) {
            q->skip[j] = 1; /* it depends on what binds, so what it lacks is rounding */
            return;
        }
        if (!full) step = most;
        for (int i = 0; i < q->k; i++) {
            double *x = q->x + q->binds[i];
            *x -= step * q->s[i];
            if (*x < 0) *x = 0;
        }
        q->x[j] += step;
        if (free) add(q->y, step, q->z, q->p);
        if (full) {
            join(q, j, sqrt(square));
            return;
        }
        leave(q, l);
        square += q->d[q->k] * q->d[q->k];
        add(q->z, q->d[q->k], q->J + (size_t)q->k * q->p, q->p);
    }
}

/* The equations of what binds, solved again for what rounding left; who would become negative leaves. */
INLINE void refine(Dual *q) {
    for (int again = 0; again < REFINED; again++) {
        recompute(q);
        for (int c = 0; c < q->k; c++) { /* R^T d = -A_W y */
            const double *R = q->R + (size_t)c * q->p;
            double sum = -dot(q->A + (size_t)q->binds[c] * q->p, q->y, q->p);
            for (int i = 0; i < c; i++) sum -= R[i] * q->d[i];
            q->d[c] = sum / R[c];
        }
        back(q, q->d);
        for (int c = 0; c < q->k; c++) q->x[q->binds[c]] += q->d[c];
        for (int c = q->k - 1; c >= 0; c--)
            if (!(q->x[q->binds[c]] >= 0)) leave(q, c);
    }
    recompute(q);
}

INLINE void begin(Dual *q) {
    q->k = 0;
    memset(q->J, 0, (size_t)q->r * q->p * sizeof(double));
    for (int c = 0; c < q->r; c++) q->J[(size_t)c * q->p + c] = 1;
    memset(q->x, 0, q->m * sizeof(double));
    memset(q->skip, 0, q->m);
    recompute(q);
}

/* x >= 0 [m] for one b, and by how much its conditions are missed. */
FOR_EACH_CPU
static double nearest(Dual *q, double room, double size) {
    double worst = INFINITY;
    int found = 0;
    begin(q);
    for (int steps = 0; steps < 10 * q->m + 100; steps++) {
        double total = size, least = 0;
        int next = -1;
        for (int j = 0; j < q->m; j++) {
            total += q->x[j];
            q->s[j] = dot(q->A + (size_t)j * q->p, q->y, q->p);
            total += 0 * q->s[j]; /* NaN, if that is none of the finite numbers */
            if (!q->skip[j] && q->s[j] < least) least = q->s[j], next = j;
        }
        if (!isfinite(total)) return INFINITY;
        if (least < -room * total) {
            enter(q, next, 4 * room);
            continue;
        }
        if (found) {
            worst = 0;
            for (int j = 0; j < q->m; j++) worst = fmax(worst, q->x[j] > 0 ? fabs(q->s[j]) : -q->s[j]);
            if (worst <= room * total || found > AGAIN) break;
        }
        found++;
        refine(q);
    }
    return worst;
}

/* All rows of B [n, r]; the buffers of A and B are not padded yet. False with an exception if there is no memory, or if
   the user interrupts: many rows of hundreds of columns can take minutes. */
static int solve(const double *A, const double *B, const double *size, double room, double *X, double *missed, int m,
                 int n, int r) {
    size_t p = (size_t)(r + LANES - 1) / LANES * LANES, most = (m > r ? m : r) + LANES;
    size_t numbers = m * p + 2 * r * p + 5 * p + most;
    double *memory = malloc(numbers * sizeof(double) + 64), *rows = aligned(memory);
    int *binds = malloc((r + 1) * sizeof(int));
    char *skip = malloc(m);
    int done = memory && binds && skip;
    if (!done) {
        PyErr_NoMemory();
    } else {
        memset(rows, 0, numbers * sizeof(double));
        double *J = rows + m * p, *R = J + r * p, *b = R + r * p, *rest = b + p, *scalars = rest + 4 * p;
        for (int j = 0; j < m; j++) memcpy(rows + j * p, A + (size_t)j * r, r * sizeof(double));
        for (int i = 0; done && i < n; i++) {
            memcpy(b, B + (size_t)i * r, r * sizeof(double));
            Dual q = {.A = rows, .b = b, .J = J, .R = R, .y = rest, .d = rest + p, .z = rest + 2 * p, .v = rest + 3 * p,
                      .s = scalars, .x = X + (size_t)i * m,
                      .binds = binds, .skip = skip, .m = m, .r = r, .p = (int)p};
            Py_BEGIN_ALLOW_THREADS
            missed[i] = nearest(&q, room, size[i]);
            Py_END_ALLOW_THREADS
            done = PyErr_CheckSignals() == 0;
        }
    }
    free(memory), free(binds), free(skip);
    return done;
}

/* nearest(A, B, size, X, missed, room): buffers of float64, [m, r], [n, r], [n], [n, m] and [n]. */
static PyObject *py_nearest(PyObject *self, PyObject *args) {
    Py_buffer A, B, size, X, missed;
    double room;
    int done = 0;
    if (!PyArg_ParseTuple(args, "y*y*y*w*w*d", &A, &B, &size, &X, &missed, &room)) return NULL;
    Py_ssize_t number = sizeof(double), n = size.len / number;
    Py_ssize_t m = n ? X.len / number / n : 0, r = m ? A.len / number / m : 0;
    int fits = n > 0 && m > 0 && r > 0 && n < INT32_MAX && m < INT32_MAX / LANES && r < INT32_MAX / LANES &&
               missed.len == n * number && size.len == n * number && X.len == n * m * number &&
               A.len == m * r * number && B.len == n * r * number;
    if (fits) done = solve(A.buf, B.buf, size.buf, room, X.buf, missed.buf, (int)m, (int)n, (int)r);
    PyBuffer_Release(&A), PyBuffer_Release(&B), PyBuffer_Release(&size), PyBuffer_Release(&X);
    PyBuffer_Release(&missed);
    if (!fits) return PyErr_Format(PyExc_ValueError, "nearest: the buffers are not of one problem");
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef methods[] = {
    {"nearest", py_nearest, METH_VARARGS, "nearest(A, B, size, X, missed, room): see native.py"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_nearest", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__nearest(void) { return PyModule_Create(&module); }
