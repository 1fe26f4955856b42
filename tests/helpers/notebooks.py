"""Notebooks as Jupyter runs them, without Jupyter."""

import ast
import json

PARAMETERS = "parameters"  # the tag of the cell whose variables are replaced, as papermill does


def cells(path):
    """Id, tags and program of each cell of code."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield cell["id"], cell["metadata"].get("tags", []), "".join(cell["source"])


def run_notebook(path, **parameters):
    """Run the cells of a notebook in order, with other parameters.

    Returns what each cell shows, by its id: the value of an expression that is its last line.
    """
    namespace, shown = {"__name__": "__main__"}, {}
    for name, tags, source in cells(path):
        program = ast.parse(source, f"{path.name}, cell {name}")
        last = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
        exec(compile(program, f"{path.name}, cell {name}", "exec"), namespace)
        if PARAMETERS in tags:
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
        if last is not None:
            shown[name] = eval(compile(ast.Expression(last.value), f"{path.name}, cell {name}", "eval"), namespace)
    return shown
