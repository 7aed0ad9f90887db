"""The same work on other engines and on localflow, as one table: `python -m benchmarks.peers`, or `make bench-peers`.

Each engine has a program here, `dask_peer.py` and so on. It runs in an environment of its own, which has no localflow,
and says how one does things there, by functions of these names:

    with_workers(body)                 return body(workers) with WORKERS processes ready for work
    independent(workers, count)        submit `nothing` for each number below count; return the results
    chain(workers, count)              submit `successor` for the result of the one before, from 0; return the last
    mapped(workers, count)             as `independent`, by what the engine has for many items
    stencil(workers, steps, length)    rows of `spin`, each taking its neighbours in the row above; return the last row
    computing(workers, count, turns)   submit `compute` so many times; return the results
    large_array(workers, size)         submit `make`, then `read` of its result READERS times; return the results

What an engine has nothing for, its program leaves out. Everything else is the same for all: `work.py` is what is
submitted, `side.py` measures in the process of the engine and checks what came back, `programs.py` starts that process
and leaves nothing of it behind, `engines.py` lists the engines.
"""
