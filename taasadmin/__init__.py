"""The operator's half of TAAS, which the service never imports: taas_admin.py's commands stand on it.

wording     how a hint names a command
book        the database as the operator changes it
agentfile   what a hidden server is given
credentials what can be done with credentials and labels
doctor      all that the service needs, looked at

The page for browsers:
door        its HTTP server: who is let in, and what a request must look like
page        what each address shows, and what each form does
views       how that looks; page.css and page.js beside it
html        the only place where markup is made
watch       what the running service does just now
"""
