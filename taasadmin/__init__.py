"""The operator's half of TAAS, which taaslib knows nothing of: what taas_admin.py's commands stand on.

wording     how a hint names a command
book        the database as the operator changes it
agentfile   what a hidden server is given
credentials what can be done with credentials and labels
runtime     what the running service answers on its socket; taas.py hands it to it
steer       how it is asked
live        its answers as tables
doctor      all that the service needs, looked at

The page for browsers:
door        its HTTP server: who is let in, and what a request must look like
page        what each address shows, and what each form does
views       how that looks; page.css and page.js beside it
html        the only place where markup is made
watch       what the running service does just now
"""
