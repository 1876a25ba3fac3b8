//! Row security: whether this role sees every row of the outbox. What is hidden is hidden in silence: a held message that the
//! relay does not see lets newer ones of its key overtake it.

use outboxd_engine::OutboxError;
use sqlx::{Row, SqlStr};

use crate::session::Call;

/// A table that hides rows from this role.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// Its name with its schema, quoted.
    pub(crate) table: String,
    role: String,
    /// Policies that take rows away.
    restrictive: Option<String>,
}

impl Hidden {
    /// The tables that do.
    pub(crate) async fn tables(call: &mut Call<'_>, row_security: SqlStr) -> Result<Vec<Self>, OutboxError> {
        let rows = call.rows(sqlx::query(row_security).persistent(false)).await?;
        let tables = rows.iter().map(|row| {
            Ok(Self {
                table: row.try_get("table_name")?,
                role: row.try_get("role")?,
                restrictive: row.try_get("restrictive")?,
            })
        });
        call.value(tables.collect())
    }

    /// What is wrong and what to do about it; nothing if no table hides anything.
    pub(crate) fn told(hidden: &[Self]) -> Option<(String, String)> {
        let role = &hidden.first()?.role;
        let tables: Vec<_> = hidden.iter().map(|hidden| hidden.table.as_str()).collect();
        let found = format!("row security on {} hides rows from {role} in silence", tables.join(", "));
        let restrictive: Vec<_> = hidden.iter().filter_map(Self::lift).collect();
        let remedy = if restrictive.is_empty() {
            let policies: Vec<_> = hidden.iter().map(Self::create).collect();
            format!("`{}`", policies.join("; "))
        } else {
            format!("let no restrictive policy apply to {role}: {}", restrictive.join("; "))
        };
        Some((found, remedy))
    }

    fn create(&self) -> String {
        format!("create policy outboxd on {} to {} using (true)", self.table, self.role)
    }

    fn lift(&self) -> Option<String> {
        let policies = self.restrictive.as_ref()?;
        Some(format!("`alter policy .. to ..` for {policies} on {}", self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(table: &str, restrictive: Option<&str>) -> Hidden {
        Hidden { table: table.into(), role: "relay".into(), restrictive: restrictive.map(Into::into) }
    }

    #[test]
    fn every_table_is_named_with_what_to_do() {
        assert_eq!(Hidden::told(&[]), None);
        let (found, remedy) = Hidden::told(&[hidden("o.held", None), hidden("o.message", None)]).unwrap();
        assert!(found.contains("o.held, o.message") && found.contains("from relay"), "{found}");
        assert!(remedy.contains("create policy outboxd on o.message to relay using (true)"), "{remedy}");
        let (_, remedy) = Hidden::told(&[hidden("o.held", Some("tenants"))]).unwrap();
        assert!(remedy.contains("alter policy") && remedy.contains("tenants on o.held"), "{remedy}");
    }
}
