"""The operator's half of TAAS, which the service never imports: taas_admin.py's commands stand on it.

wording     how a hint names a command
book        the database as the operator changes it
agentfile   what a hidden server is given
credentials what can be done with credentials and labels
doctor      all that the service needs, looked at
"""
