wsizoo_api = 1
