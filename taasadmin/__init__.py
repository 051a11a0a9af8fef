"""The operator's half of TAAS, which the service never imports: taas_admin.py's commands stand on it.

wording     how a hint names a command
book        the database as the operator changes it
steer       what the running service is asked
live        its answers as tables
doctor      all that the service needs, looked at
"""
