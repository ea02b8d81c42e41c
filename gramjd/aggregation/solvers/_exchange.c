/* Block principal pivoting for small problems, eight at a time: what `pivoting.py` does by calls on tensors.

   Per problem: x >= 0, y = q + A x >= 0, x y = 0, with one positive definite A [m, m] for all of them. A lane of a
   vector is a problem, so no sum is taken in another order on another CPU, and with -ffp-contract=off no digit depends
   on the width of its vectors. Nothing here reports an error: rows that do not settle are said to miss everything.

   A guess of what is positive comes from the caller or, with `sweeps`, from coordinate descent from zero; a sweep costs
   a fraction of a round. Source: see pivoting.py; for the sweeps, Hildreth, A quadratic programming procedure (1957). */

#include "_lanes.h"

#define MOST 64 /* losses */
#define STRIDE 65 /* of rows of L: of a power of two, all would share a few places of the cache */
#define SLACK 1e-11
#define PATIENCE 3
#define ROUNDS 60

typedef struct {
    vec q[MOST], free[MOST], x[MOST], y[MOST], inverse[MOST], L[MOST * STRIDE];
    int some[MOST]; /* what is free in any of the problems */
} Work;

/* Rough multipliers by `sweeps` rounds of coordinate descent; `free` is 1 where they are positive. */
FOR_EACH_CPU
static void descend(const double *A, int m, int sweeps, Work *w) {
    for (int j = 0; j < m; j++) {
        w->y[j] = w->q[j];
        w->x[j] = w->q[j] * 0.0;
    }
    for (int s = 0; s < sweeps; s++)
        for (int j = 0; j < m; j++) {
            const double *a = A + j * m;
            vec new = w->x[j] - w->y[j] / a[j], step;
            for (int l = 0; l < LANES; l++) new[l] = new[l] > 0 ? new[l] : 0.0;
            step = new - w->x[j];
            w->x[j] = new;
            for (int i = 0; i < m; i++) w->y[i] += step * a[i];
        }
    for (int j = 0; j < m; j++)
        for (int l = 0; l < LANES; l++) w->free[j][l] = w->x[j][l] > 0;
}

/* x with (A x = -q) on `free` and zero elsewhere, by a Cholesky factor of A there, and y = q + A x. */
FOR_EACH_CPU
static void solve(const double *A, int m, Work *w) {
    vec *L = w->L, *x = w->x, *y = w->y;
    int n = 0;
    for (int j = 0; j < m; j++) {
        double any = 0;
        for (int l = 0; l < LANES; l++) any += w->free[j][l];
        if (any > 0) w->some[n++] = j;
        y[j] = w->q[j];
        x[j] = w->q[j] * 0.0;
    }
    for (int a = 0; a < n; a++) {
        const double *row = A + w->some[a] * m;
        vec f = w->free[w->some[a]], *La = L + a * STRIDE, s, right = -(f * w->q[w->some[a]]);
        int b = 0;
        for (; b + 4 <= a; b += 4) { /* four sums at once: each waits for its own last step only */
            vec *L0 = L + b * STRIDE, *L1 = L0 + STRIDE, *L2 = L1 + STRIDE, *L3 = L2 + STRIDE;
            vec s0 = f * w->free[w->some[b]] * row[w->some[b]], s1 = f * w->free[w->some[b + 1]] * row[w->some[b + 1]];
            vec s2 = f * w->free[w->some[b + 2]] * row[w->some[b + 2]];
            vec s3 = f * w->free[w->some[b + 3]] * row[w->some[b + 3]];
            for (int k = 0; k < b; k++) {
                vec c = La[k];
                s0 -= c * L0[k], s1 -= c * L1[k], s2 -= c * L2[k], s3 -= c * L3[k];
            }
            La[b] = s0 * w->inverse[b];
            La[b + 1] = (s1 - La[b] * L1[b]) * w->inverse[b + 1];
            La[b + 2] = (s2 - La[b] * L2[b] - La[b + 1] * L2[b + 1]) * w->inverse[b + 2];
            La[b + 3] = (s3 - La[b] * L3[b] - La[b + 1] * L3[b + 1] - La[b + 2] * L3[b + 2]) * w->inverse[b + 3];
        }
        for (; b < a; b++) {
            s = f * w->free[w->some[b]] * row[w->some[b]];
            for (int k = 0; k < b; k++) s -= La[k] * L[b * STRIDE + k];
            La[b] = s * w->inverse[b];
        }
        s = f * row[w->some[a]] + (1.0 - f);
        for (int k = 0; k < a; k++) s -= La[k] * La[k], right -= La[k] * x[w->some[k]];
        for (int l = 0; l < LANES; l++) s[l] = sqrt(s[l]);
        w->inverse[a] = 1.0 / s;
        x[w->some[a]] = right * w->inverse[a];
    }
    for (int a = n - 1; a >= 0; a--) {
        vec z = x[w->some[a]] *= w->inverse[a];
        const double *row = A + w->some[a] * m;
        for (int k = 0; k < a; k++) x[w->some[k]] -= L[a * STRIDE + k] * z;
        for (int i = 0; i < m; i++) y[i] += z * row[i];
    }
}

/* Rows `row[0..n)` of at most LANES; what is not used repeats the last. */
static void load(const double *Q, const uint8_t *free, int m, const int *row, int n, Work *w) {
    for (int l = 0; l < LANES; l++) {
        size_t at = (size_t)row[l < n ? l : n - 1] * m;
        for (int j = 0; j < m; j++) w->q[j][l] = Q[at + j], w->free[j][l] = free[at + j];
    }
}

typedef struct {
    int fewest, patience;
} Luck;

/* Write x >= 0 of a lane; move its offenders to the other side. 0: settled, 1: to go on with, 2: given up. */
static int judge(const Work *w, int l, int m, double tol, double *x, uint8_t *free, Luck *luck) {
    double most = 0, least = INFINITY;
    int count = 0;
    for (int j = 0; j < m; j++) {
        double value = free[j] ? w->x[j][l] : w->y[j][l], size = fabs(value);
        x[j] = free[j] && value > 0 ? value : 0.0;
        if (!(size <= 1e300)) return 2;
        most = size > most ? size : most;
        least = value < least ? value : least;
    }
    double bound = -SLACK * (1 + most);
    if (least >= bound || least >= -tol) return 0;
    for (int j = 0; j < m; j++) {
        int offends = (free[j] ? w->x[j][l] : w->y[j][l]) < bound;
        count += offends;
        free[j] ^= offends;
    }
    luck->patience = count < luck->fewest ? PATIENCE : luck->patience - 1;
    luck->fewest = count < luck->fewest ? count : luck->fewest;
    return luck->patience < 0 ? 2 : 1;
}

/* How far y = q + A x is from what it should be where `solve` found x, some of it cut off at zero since. */
static double missed_by(const Work *w, int l, const double *A, int m, const double *x, const uint8_t *free) {
    double worst = 0;
    int cut[MOST], n = 0;
    for (int j = 0; j < m; j++)
        if (free[j] && x[j] == 0) cut[n++] = j;
    for (int i = 0; i < m; i++) {
        double y = w->y[i][l];
        for (int k = 0; k < n; k++) y -= A[i * m + cut[k]] * w->x[cut[k]][l];
        double off = x[i] > 0 ? fabs(y) : -y;
        worst = off > worst ? off : worst;
    }
    return worst;
}

/* X [r, m] for all rows of Q [r, m], and by how much each misses its conditions: infinitely where it was given up. */
static void exchange(const double *A, const double *Q, uint8_t *free, double *X, double *missed, int m, int r,
                    double tol, int sweeps, Work *w, int *rows, Luck *luck) {
    int n = r;
    for (int i = 0; i < r; i++) rows[i] = i, luck[i] = (Luck){m + 1, PATIENCE}, missed[i] = INFINITY;
    for (int round = 0; n && round < ROUNDS; round++) {
        int kept = 0;
        for (int start = 0; start < n; start += LANES) {
            int group = n - start < LANES ? n - start : LANES;
            load(Q, free, m, rows + start, group, w);
            if (sweeps && !round) {
                descend(A, m, sweeps, w);
                for (int l = 0; l < group; l++)
                    for (int j = 0; j < m; j++) free[(size_t)rows[start + l] * m + j] = w->free[j][l] > 0;
            }
            solve(A, m, w);
            for (int l = 0; l < group; l++) {
                int i = rows[start + l];
                double *x = X + (size_t)i * m;
                uint8_t *mine = free + (size_t)i * m;
                int verdict = judge(w, l, m, tol, x, mine, luck + i);
                if (verdict == 0) missed[i] = missed_by(w, l, A, m, x, mine);
                if (verdict == 1) rows[kept++] = i;
            }
        }
        n = kept;
    }
}

/* exchange(A, Q, free, X, missed, tol, sweeps): buffers of float64, but for free [r, m], of bytes. */
static PyObject *py_exchange(PyObject *self, PyObject *args) {
    Py_buffer A, Q, free_, X, missed;
    PyObject *found = NULL;
    double tol;
    int sweeps;
    if (!PyArg_ParseTuple(args, "y*y*w*w*w*di", &A, &Q, &free_, &X, &missed, &tol, &sweeps)) return NULL;
    Py_ssize_t number = sizeof(double), r = missed.len / number, m = r ? free_.len / r : 0;
    void *memory = malloc(sizeof(Work) + 64);
    int *rows = malloc((r + 1) * sizeof(int));
    Luck *luck = malloc((r + 1) * sizeof(Luck));
    if (m < 1 || m > MOST || r > INT32_MAX || A.len != m * m * number || free_.len != r * m ||
        Q.len != r * m * number || X.len != r * m * number)
        PyErr_SetString(PyExc_ValueError, "exchange: the buffers are not of one problem with 1 to 64 losses");
    else if (!memory || !rows || !luck)
        PyErr_NoMemory();
    else {
        Work *w = aligned(memory);
        Py_BEGIN_ALLOW_THREADS
        exchange(A.buf, Q.buf, free_.buf, X.buf, missed.buf, (int)m, (int)r, tol, sweeps, w, rows, luck);
        Py_END_ALLOW_THREADS
        found = Py_NewRef(Py_None);
    }
    free(memory), free(rows), free(luck);
    PyBuffer_Release(&A), PyBuffer_Release(&Q), PyBuffer_Release(&free_), PyBuffer_Release(&X);
    PyBuffer_Release(&missed);
    return found;
}

static PyMethodDef methods[] = {
    {"exchange", py_exchange, METH_VARARGS, "exchange(A, Q, free, X, missed, tol, sweeps): see native.py"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_exchange", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__exchange(void) { return PyModule_Create(&module); }
