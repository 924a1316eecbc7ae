from wsizoo import hookimpl

wsizoo_api = 1


@hookimpl
def wsizoo_components():
    return ()
